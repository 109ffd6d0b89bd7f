"""Choose the weight file for a cell's accuracy, and check that it fits the model.

The file is the user's (`--weights`), or timm's (`--pretrained`), else the one that ships for the variant, the
dataset and the resolution; never the best of several.  The planner matches the user's file with the model on
the meta device before any cell runs, because that takes seconds and a cell may take hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from longvis_bench.data.protocol import FOLDER, ImageData
from longvis_bench.errors import CheckpointError, IllegalSize
from longvis_bench.files import absence
from longvis_bench.hashing import sha256_file
from longvis_bench.records import Normalisation
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution
from longvis_bench.weights.classes import HEAD, class_indices, head_classes, knows_classes
from longvis_bench.weights.files import find_file, sha256_weights, split_key
from longvis_bench.weights.header import read_header


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A weight file and the facts needed to evaluate it on a dataset."""

    path: Path
    name: str
    """Name in rows: the file's name, or timm's name of the weights; never a path."""
    sha256: str
    classes: int | None = None
    """Number of classes of the file; None if unknown."""
    class_indices: tuple[int, ...] | None = None
    """Logit index of each dataset class; see `classes.class_indices`."""
    knows_classes: bool = False
    """Whether names assign the logits to the classes; see `classes.knows_classes`."""
    resolution: Resolution | None = None
    """Resolution of the training in pixels per side, if a source other than the file states it."""
    normalisation: Normalisation | None = None
    """Normalisation for images of a folder; None for ImageNet's."""

    def logits(self, data: ImageData) -> int:
        """Number of logits of the model: the dataset's classes, or the file's if it has others, too."""
        return data.num_classes if self.class_indices is None or self.classes is None else self.classes


def given_weights(
    variants: Sequence[Variant],
    data: ImageData,
    file: Path | None,
    pretrained: bool,
    resolutions: Sequence[Resolution] = (),
) -> dict[str, WeightFile]:
    """The weights that the user chose: full name of the variant -> file; empty without a choice.

    Arguments:
        variants: all requested variants.
        data: the dataset whose classes the weights must have.
        file: --weights: a file, FILE#KEY if it has several sets, an index of shards, or a folder.
        pretrained: --pretrained: timm's weights, from the local cache or from `file`.
        resolutions: pixels per side; the models are built for them to identify the classifier's tensors.

    Raises:
        CheckpointError: there is no such file, or it has other classes.
    """
    file = None if file is None else find_file(file)
    if file is not None and not split_key(file)[0].is_file():
        raise CheckpointError(f"{absence(file, 'weight file')}.")
    if file is not None and len(variants) > 1:
        raise CheckpointError(f"--weights is for one model, and {len(variants)} are asked for.")
    if pretrained:
        return {variant.full_name: _of_timm(variant, data, file, resolutions) for variant in variants}
    if file is not None:
        return {variant.full_name: _of_user(variant, file, data, resolutions) for variant in variants}
    return {}


def _of_user(variant: Variant, file: Path, data: ImageData, resolutions: Sequence[Resolution]) -> WeightFile:
    from longvis_bench.weights.reading import read_set

    file = chosen_set(variant, file, resolutions, data.num_classes)
    key, _ = read_set(file)
    path = split_key(file)[0].resolve()
    path = path.with_name(f"{path.name}#{key}") if key else path
    known = _known(variant, path, data, resolutions)
    metadata = read_header(path).metadata
    return WeightFile(
        path=path,
        name=path.name,
        sha256=sha256_weights(path),
        classes=known,
        class_indices=class_indices(path.name, known, data, metadata),
        knows_classes=knows_classes(known, data, metadata),
    )


def chosen_set(variant: Variant, path: Path, resolutions: Sequence[Resolution], num_classes: int) -> Path:
    """The file with the key of its parts, where a model needs several of its sets together.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from longvis_bench.weights.classifier import bare_model
    from longvis_bench.weights.parts import with_parts

    for resolution in resolutions:
        try:
            model = bare_model(variant, resolution, num_classes)
        except IllegalSize:
            continue
        return path if model is None else with_parts(path, model)
    return path


def _of_timm(
    variant: Variant, data: ImageData, file: Path | None, resolutions: Sequence[Resolution]
) -> WeightFile:
    from longvis_bench.weights.timm_cache import find_pretrained

    found = find_pretrained(variant, file)
    name = f"timm:{found.name}" if file is None else file.name
    known = _known(variant, found.path, data, resolutions)
    metadata = read_header(found.path).metadata
    return WeightFile(
        path=found.path.resolve(),
        name=name,
        sha256=sha256_weights(found.path),
        classes=known,
        class_indices=class_indices(name, known, data, metadata),
        knows_classes=knows_classes(known, data, metadata),
        resolution=found.resolution,
        normalisation=found.normalisation if data.name.startswith(FOLDER) else None,
    )


def _known(variant: Variant, path: Path, data: ImageData, resolutions: Sequence[Resolution]) -> int | None:
    """Number of classes of the file, by the tensors of the model's classifier, else by usual names."""
    from longvis_bench.weights.classifier import file_classes
    from longvis_bench.weights.reading import read_tensors

    known = file_classes(variant, read_tensors(path), resolutions, data.num_classes, path.name)
    return known_classes(path) if known is None else known


def known_classes(path: Path) -> int | None:
    """Number of classes in a weight file of any format, by usual names of a classifier; None if ambiguous.

    Raises:
        CheckpointError: the file is no safetensors file and cannot be read.
    """
    known = head_classes(path)
    if known is not None:
        return known
    from longvis_bench.weights.reading import read_tensors

    found = {len(tensor) for name, tensor in read_tensors(path).items() if HEAD.search(name) and tensor.ndim}
    return found.pop() if len(found) == 1 else None


def shipped_weights(variant: Variant, dataset: str, resolution: Resolution) -> WeightFile | None:
    """The file that ships for the variant, dataset and resolution; None if none does.

    Raises:
        CheckpointError: the file is damaged or missing.
    """
    entry = variant.shipped_weights(dataset, resolution)
    if entry is None or entry.file is None or entry.sha256 is None:
        return None
    path = variant.folder / entry.file
    if not path.is_file() or sha256_file(path) != entry.sha256:
        raise CheckpointError(f"the shipped weights {entry.file} are damaged or missing; install again.")
    return WeightFile(path=path, name=path.name, sha256=entry.sha256)


def no_weights(model: str, dataset: str, resolution: Resolution) -> str:
    """The reason for a missing accuracy if no file ships, with the command that trains one."""
    data = f"{FOLDER}PATH" if dataset.startswith(FOLDER) else dataset
    return (
        f"no weights ship for {model} on {dataset} at {resolution} px; "
        f"make them with `longvis train --models {model} --data {quote(data)} --res {resolution}`"
    )
