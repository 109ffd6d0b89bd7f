"""`folder:PATH`: the user's own images, one folder per class under train/ and val/.

    PATH/train/<class>/*.jpg          PATH/val/<class>/*.png          `SUFFIXES`, any case, or DICOM without

Held-out images may also be in valid/, validation/ or test/; val/ comes first, and `notes` says which is
read. They are enough for an evaluation: without train/, their folders are the classes.  Files of other kinds
are left out, and `notes` counts them.

Labels number the class folders in alphabetical order, as in torchvision's ImageFolder, or with
`class_order="natural"` by the numbers in their names (2 before 10), as in timm.  A file of classes selects
classes, and its order is that of the labels.  ImageNet with the list `imagenet100` is HR-ImageNet-100 of the
Atlas paper (arXiv:2503.12355): the shorter side is resized to the resolution, bicubic, and the centre is
cropped without a margin.

Rectangles: `fit="pad"` surrounds the whole image with the mean of the normalisation, "stretch" changes its
shape; the name then ends in `-pad` or `-stretch`.

The data set's name is `folder:<last part of PATH>-<hash>`; the hash covers the window, the bands, and every
file's class, name, size and time of its last change, in seconds.  So it follows images that are written
again in place; copies have the same name if they keep these times, as rsync -a, cp -p, tar and zip do.  The
name contains no path.

`decode.py` decodes files, and `resize.py` resizes images.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from longvis_bench.data import dicom
from longvis_bench.data.protocol import BROKEN_SHARE, BrokenImage, Split, too_many_broken
from longvis_bench.errors import DataError, UnknownName
from longvis_bench.records import ClassOrder, Normalisation
from longvis_bench.resolution import Fit, Resolution

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HELD_OUT = ("val", "valid", "validation", "test")
"""Folders of held-out images; the first one that exists is read."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2"),
    *dicom.SUFFIXES,
)
NOT_DATA = frozenset(
    [
        *("@eadir", "__macosx", "lost+found", "$recycle.bin", "#recycle", "system volume information"),
        *("thumbs.db", "desktop.ini"),
    ]
)
"""What file servers, archivers and file managers leave in folders, in lower case."""
SHIPPED_LISTS = ("imagenet100",)
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's pixels in 0-1, per channel, which most published weights expect."""


class _File(NamedTuple):
    name: str
    """Relative to the data set's folder, with forward slashes."""
    label: int
    bytes: int
    changed: int
    """Time of the last change, in seconds since 1970."""


class Folder:
    """Images in class folders; see the module's docstring.

    Arguments:
        path: the folder that holds train/ and val/, or held-out images alone.
        classes: a shipped list, or a file with one class name per line, in the order of the labels; lines
            that begin with `#` and text after ` #` are comments, unless a class has that name.  None: all.
        window: pixel values (low, high) that become 0 and 1, for images of more than 8 bits.
        normalisation: mean and deviation per channel; None for ImageNet's.
        class_order: order of all classes, if `classes` is None.
        bands: numbers of the bands that images consist of, from 1: one or three; None for all.
        fit: how images are brought to the resolution; see `resize.fit`.

    Raises:
        UnknownName: a listed class has no folder.
        DataError: there are no held-out images, a class has no training images although there is train/, or
            there are fewer than two classes.
    """

    fresh = False

    def __init__(
        self,
        path: str,
        *,
        classes: str | None = None,
        window: tuple[float, float] | None = None,
        normalisation: Normalisation | None = None,
        class_order: ClassOrder = "sorted",
        bands: tuple[int, ...] | None = None,
        fit: Fit = "crop",
    ) -> None:
        if window is not None and not window[0] < window[1]:
            raise DataError(f"the window {window[0]:g},{window[1]:g} is empty: LO has to be below HI.")
        self._root, self._window, self._bands = _root(path), window, bands
        self._normalisation, self._fit = normalisation or IMAGENET, fit
        held_out = _held_out(self._root)
        self._folders: dict[Split, str] = {"train": "train", "val": held_out[0]}
        has_train = (self._root / "train").is_dir()
        all_classes = _all_classes(self._root, held_out[0], has_train, alone=classes is None)
        where = "train" if has_train else held_out[0]
        self.classes = _chosen_classes(all_classes, classes, class_order, where)
        """Class names, in the order of the labels."""
        others: Counter[str] = Counter()
        self._files: dict[Split, list[_File]] = {
            "train": _files(self._root, "train", self.classes, others) if has_train else [],
            "val": _files(self._root, held_out[0], self.classes, others),
        }
        self._require_images(has_train)
        self.notes = tuple(self._notes(held_out, others))
        """See `LoadableData.notes`."""
        self.name = f"folder:{self._root.resolve().name}-{self._hash()}" + (
            "" if fit == "crop" else f"-{fit}"
        )
        self._broken: dict[str, str] = {}

    @property
    def num_classes(self) -> int:
        """Number of class folders, or of listed classes."""
        return len(self.classes)

    @property
    def broken(self) -> Mapping[str, str]:
        """See `ImageData.broken`."""
        return self._broken

    def size(self, split: Split) -> int:
        """Number of image files in a split, broken ones included."""
        return len(self._files[split])

    def batch(
        self,
        split: Split,
        indices: Sequence[int],
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images and labels by their index in the split, without broken ones; see `ImageData.batch`."""
        import torch

        images, labels = [], []
        for index in indices:
            try:
                image, label = self.load(split, index, resolution)
            except BrokenImage as broken:
                self.note_broken(split, {broken.name: broken.why})
                continue
            images.append(image)
            labels.append(label)
        batch = self.finish(images, resolution, device=device, dtype=dtype)
        return batch, torch.tensor(labels, dtype=torch.int64, device=device)

    def load(self, split: Split, index: int, resolution: Resolution) -> tuple[Tensor, int]:
        """One image at its own size; see `LoadableData.load`."""
        import torch

        from longvis_bench.data.decode import decode

        file = self._files[split][index]
        pixels = decode(self._root / file.name, file.name, self._window, self._bands)
        return torch.from_numpy(pixels), file.label

    def fit(self, image: Tensor, resolution: Resolution) -> Tensor:
        """Crop, pad or stretch it to the resolution; see `resize.fit`."""
        from longvis_bench.data.resize import fit

        return fit(image, resolution, self._fit, self._normalisation[0])

    def finish(
        self,
        images: Sequence[Tensor] | Tensor,
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A normalised batch; see `LoadableData.finish`."""
        from longvis_bench.data.resize import finish

        return finish(images, resolution, *self._normalisation, how=self._fit, device=device, dtype=dtype)

    def note_broken(self, split: Split, broken: Mapping[str, str]) -> None:
        """Record broken files; see `LoadableData.note_broken`."""
        self._broken.update(broken)
        found = [name for name in self._broken if name.startswith(f"{self._folders[split]}/")]
        if len(found) > BROKEN_SHARE * self.size(split):
            raise too_many_broken(len(found), self.size(split), found[-1], self._broken[found[-1]])

    def _hash(self) -> str:
        """Eight characters that depend on the images, their classes and the window."""
        files = {split: [tuple(file) for file in found] for split, found in self._files.items()}
        content = json.dumps([files, self._window, self._bands], separators=(",", ":"))
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:8]

    def _without_images(self, split: Split) -> list[str]:
        there = {file.label for file in self._files[split]}
        return [name for label, name in enumerate(self.classes) if label not in there]

    def _require_images(self, has_train: bool) -> None:
        suffixes = f"({', '.join(SUFFIXES)})"
        if has_train and (empty := self._without_images("train")):
            raise DataError(f"the class {empty[0]} has no images in train/ {suffixes}.")
        if not self._files["val"]:
            raise DataError(f"{self._folders['val']}/ has no images of the classes {suffixes}.")

    def _notes(self, held_out: Sequence[str], others: Counter[str]) -> Iterator[str]:
        if held_out != ["val"]:
            unused = "".join(f"; {name}/ is not read" for name in held_out[1:])
            yield f"the held-out images are those of {held_out[0]}/{unused}"
        if empty := self._without_images("val"):
            yield (
                f"{self._folders['val']}/ has no images of {len(empty)} of {self.num_classes} classes "
                f"({_few(empty)}), so the accuracy is that of the others"
            )
        if others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
            more = ", ..." if len(others) > 5 else ""
            yield f"{others.total()} files are left out because of their kind: {kinds}{more}"


def _root(path: str) -> Path:
    if not path:
        raise DataError("folder: needs a path, like folder:/data/imagenet.")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {path}; folder:PATH needs one that holds train/ and val/.")
    if not _held_out(root):
        raise DataError(
            f"{path} has no val/ (nor {', '.join(f'{name}/' for name in HELD_OUT[1:])}): a data set is "
            "train/ and val/, each with one folder per class; for an evaluation val/ is enough."
        )
    return root


def _held_out(root: Path) -> list[str]:
    """The folders of held-out images that exist; the first one is read."""
    return [name for name in HELD_OUT if (root / name).is_dir()]


def _all_classes(root: Path, held_out: str, has_train: bool, *, alone: bool) -> list[str]:
    """Class folders of train/, or of the held-out images if there is no train/.

    Raises:
        DataError: all classes are wanted, and train/ lacks some of the held-out ones.
    """
    held = _class_folders(root, held_out)
    there = _class_folders(root, "train") if has_train else held
    unknown = sorted(set(held) - set(there))
    if unknown and alone:
        raise DataError(f"{held_out}/ has classes that train/ does not have: {_few(unknown)}.")
    return there


def _chosen_classes(there: Sequence[str], spec: str | None, order: ClassOrder, where: str) -> tuple[str, ...]:
    """Class names in the order of the labels: all folders, or those of a list."""
    chosen = in_order(there, order) if spec is None else _read_list(spec, there)
    for name in chosen:
        if name not in there:
            raise UnknownName("class", name, there, f"{where}/ has {len(there)} classes: {_few(there)}.")
    if len(chosen) < 2:
        found = f"only one class ({chosen[0]})" if chosen else "no class"
        raise DataError(f"{spec or f'{where}/'} has {found}: classification needs at least two.")
    return tuple(chosen)


def _class_folders(root: Path, split: str) -> list[str]:
    with os.scandir(root / split) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not _is_no_data(entry.name))
    if not names:
        raise DataError(f"{split}/ has no class folders: put images into {split}/<class>/.")
    return names


def in_order(names: Iterable[str], order: ClassOrder) -> list[str]:
    """Class names in the order of the labels: `natural` compares numbers in them as numbers (2 before 10)."""
    return sorted(names, key=_natural if order == "natural" else None)


def refuse_two_orders(classes: str | None, order: ClassOrder | None) -> None:
    """Raise DataError if both a list of classes, which has an order of its own, and an order are given."""
    if classes is not None and order is not None:
        raise DataError(
            f"--classes {classes} has the order of the logits already; --class-order {order} is for all "
            "folders without a list: leave one of them out."
        )


def order_doubt(classes: Sequence[str]) -> str | None:
    """Why the order of classes is in doubt: by numbers in their names, or without regard to case, it differs.

    Returns:
        A clause; None if the names are not in alphabetical order, or if that is also their numerical order.
    """
    natural = in_order(classes, "natural")
    if list(classes) != in_order(classes, "sorted") or list(classes) == natural:
        return None
    return (
        f"the class folders are numbered alphabetically ({_few(_differing(classes, natural), 3)}), as "
        f"torchvision does; weights trained with timm have the natural order "
        f"({_few(_differing(natural, classes), 3)})"
    )


def _differing(names: Sequence[str], others: Sequence[str]) -> Sequence[str]:
    """The names from the last one before the first difference on, so that few of them show it."""
    first = next(index for index, pair in enumerate(zip(names, others, strict=True)) if pair[0] != pair[1])
    return names[max(0, first - 1) :]


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"\d+|\D+", name)
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part.lower()) for part in parts
    ], name


def _read_list(spec: str, there: Sequence[str]) -> list[str]:
    """The class names of a file, in its order, or of a shipped list, in alphabetical order."""
    shipped = spec in SHIPPED_LISTS
    path = Path(__file__).with_name(f"{spec}.txt") if shipped else Path(spec)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        known = f"{', '.join(SHIPPED_LISTS)} ships, or give a file with one class per line."
        raise UnknownName("list of classes", spec, SHIPPED_LISTS, known) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise DataError(f"cannot read the classes in {spec}: {why}.") from error
    folders = {_composed(name): name for name in there}
    names = list(dict.fromkeys(filter(None, (_listed(line.strip(), folders) for line in lines))))
    return sorted(names) if shipped else names


def _listed(line: str, folders: Mapping[str, str]) -> str:
    """The class name on a line of a list, without a comment; a `#` inside a class name is kept.

    Folders from macOS have accents as characters of their own; a line matches them in either form.
    """
    if _composed(line) not in folders:
        line = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
    return folders.get(_composed(line), line)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_no_data(name: str) -> bool:
    """Whether a file or folder is hidden, or is one that systems leave in folders."""
    return name.startswith(".") or name.lower() in NOT_DATA


def _files(root: Path, split: str, classes: Sequence[str], others: Counter[str]) -> list[_File]:
    """All image files of a split, sorted by class and name; `others` counts further files by their suffix."""
    found: list[_File] = []
    for label, name in enumerate(classes):
        folder = f"{split}/{name}"
        files = sorted(_walk(root / folder, folder, others)) if (root / folder).is_dir() else []
        found += [_File(file, label, *state) for file, state in files]
    return found


def _walk(folder: Path, name: str, others: Counter[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Image files at any depth, without hidden ones: names relative to the root, bytes, time of change."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_no_data(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{name}/{entry.name}", others)
            elif entry.name.lower().endswith(SUFFIXES) or dicom.is_dicom(Path(entry.path)):
                yield f"{name}/{entry.name}", _state(entry)
            else:
                others[Path(entry.name).suffix.lower() or "without a suffix"] += 1


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Bytes and time of change; 0 for a dangling link, which counts as broken when it is decoded."""
    try:
        found = entry.stat()
    except OSError:
        return 0, 0
    return found.st_size, int(found.st_mtime)


def _few(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
