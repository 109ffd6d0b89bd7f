"""Probes: accuracy of frozen features, by a simple classifier that is fitted on those of the training images.

A backbone without a classifier for the data (pretrained on other classes, or self-supervised) gets an
accuracy without being trained.  Features are what enters the model's own classifier, of images without
augmentation, in eval mode and float32.  Two probes of scikit-learn:

- `knn`: the most frequent class among the `NEIGHBOURS` most similar training images, by cosine similarity;
- `linear`: logistic regression on standardised features, with one of the `STRENGTHS` as C.

The setting is the one with the highest accuracy in cross-validation on the training images, in `FOLDS`
shuffled folds with all classes in each; of equal ones the first.  `fit_probe` gets training images alone, and
held-out images are loaded after it has returned, so that nothing of them can enter the fit.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longvis_bench.data.protocol import FOLDER, ImageData, Split, open_data
from longvis_bench.errors import CheckpointError, DataError, InvalidOutput, MissingDependency, Unsupported
from longvis_bench.files import absence
from longvis_bench.measure.accuracy import batch_for
from longvis_bench.records import DataSpec
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution
from longvis_bench.weights.classifier import classifier_dims
from longvis_bench.weights.files import find_file, split_key
from longvis_bench.weights.matching import check_fit, load_weights
from longvis_bench.weights.resolving import chosen_set, shipped_weights
from longvis_bench.weights.timm_cache import find_pretrained

Kind = Literal["knn", "linear"]
NEIGHBOURS = (1, 5, 20, 100)
"""Candidates of `knn`, as far as the training images of a cross-validation suffice."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Candidates of `linear`: C, the inverse of the strength of its L2 penalty."""
FOLDS = 5
"""Of the cross-validation; fewer where a class has fewer training images."""
ITERATIONS = 300
"""Of logistic regression; cross-validation judges a fit that ends here like any other."""
RANDOM = "random"
"""What stands for the name of weights where there are none; their seed is 0."""
INSTALL = "python -m pip install 'longvis-bench[probes]'"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the images of one split, and their labels."""

    values: NDArray[np.float32]
    """(images, features)."""
    labels: NDArray[np.int64]
    """(images)."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A probe that was fitted on training images."""

    kind: Kind
    estimator: Any
    """Of scikit-learn, fitted on all training images with the setting that was chosen."""
    setting: str
    """E.g. "k=5" or "C=0.1"."""
    validated: float
    """Accuracy of this setting in cross-validation, 0-1."""
    train_images: int

    def predict(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Classes (images) of features (images, features)."""
        return np.asarray(self.estimator.predict(values), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Accuracy of one probe on the held-out images."""

    model: str
    resolution: Resolution
    dataset: str
    weights: str
    """Name of the file or of timm's weights, or `RANDOM`; never a path."""
    fitted: Fitted
    features: int
    """Per image."""
    correct: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights whose features are measured."""

    name: str = RANDOM
    path: Path | None = None
    spec: DataSpec | None = None
    """The data, normalised as the weights need it; None for the data as given."""


def require_scikit_learn() -> None:
    """Raise MissingDependency, with the command that installs it, unless scikit-learn is there."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingDependency("scikit-learn", "--probe", INSTALL) from error


def find_source(
    variant: Variant, spec: DataSpec, resolution: Resolution, weights: Path | None, pretrained: bool
) -> Source:
    """The weights for a model: the user's, timm's, or those that ship for the data and size, else none.

    Arguments:
        variant: the model.
        spec: the data set.
        resolution: pixels per side.
        weights: --weights.
        pretrained: --pretrained.

    Raises:
        CheckpointError: there is no such file, or it belongs to another model.
    """
    data = open_data(spec)
    if pretrained:
        found = find_pretrained(variant, None if weights is None else find_file(weights))
        scaled = found.normalisation if spec.data.startswith(FOLDER) else None
        name = f"timm:{found.name}" if weights is None else weights.name
        return _checked(
            variant,
            data,
            resolution,
            Source(name=name, path=found.path, spec=replace(spec, normalisation=scaled)),
        )
    if weights is not None:
        path = find_file(weights)
        if not split_key(path)[0].is_file():
            raise CheckpointError(f"{absence(path, 'weight file')}.")
        path = chosen_set(variant, path, [resolution], data.num_classes)
        return _checked(variant, data, resolution, Source(name=path.name, path=path))
    shipped = shipped_weights(variant, data.name, resolution)
    return Source() if shipped is None else Source(name=shipped.name, path=shipped.path)


def _checked(variant: Variant, data: ImageData, resolution: Resolution, source: Source) -> Source:
    assert source.path is not None
    check_fit(variant, source.path, [resolution], data.num_classes, whole=False)
    return source


def measure_probe(
    variant: Variant,
    spec: DataSpec,
    resolution: Resolution,
    kind: Kind,
    source: Source,
    *,
    images: int | None = None,
    device: str = "cpu",
) -> ProbeResult:
    """Fit a probe on the training images and measure its accuracy on the held-out ones.

    Arguments:
        variant: the model.
        spec: the data set.
        resolution: pixels per side.
        kind: of the probe.
        source: the weights, from `find_source`.
        images: held-out images, evenly spaced over all; None for all.
        device: that computes features.

    Raises:
        MissingDependency: scikit-learn is not installed.
        DataError: a class has fewer than two training images.
        Unsupported: the model shows no classifier whose input could be taken.
        CheckpointError: tensors other than the classifier's would be random.
        InvalidOutput: a feature is not finite.
    """
    require_scikit_learn()
    data = open_data(source.spec or spec)
    model, heads = _model(variant, resolution, data.num_classes, source)
    model.to(device).eval()
    extract = Extractor(model, heads, data, resolution, device)
    fitted = fit_probe(kind, extract.features("train"), data.classes)
    held_out = extract.features("val", images)
    return ProbeResult(
        model=variant.full_name,
        resolution=resolution,
        dataset=data.name,
        weights=source.name,
        fitted=fitted,
        features=held_out.values.shape[1],
        correct=int((fitted.predict(held_out.values) == held_out.labels).sum()),
        images=len(held_out.labels),
    )


def _model(
    variant: Variant, resolution: Resolution, num_classes: int, source: Source
) -> tuple[nn.Module, Mapping[str, int]]:
    """The model with its weights, and the tensors of its classifier."""
    heads = classifier_dims(variant, resolution, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = variant.build(resolution=resolution, num_classes=num_classes)
    if source.path is not None:
        loaded = load_weights(model, source.path, strict=False, heads=heads)
        if others := [name for name in loaded.missing if name not in heads]:
            listed = ", ".join(others[:3])
            raise CheckpointError(f"{source.name} does not fit {variant.name}: {listed} would be random.")
    return model, heads


class Extractor:
    """Takes what enters a model's classifier.

    Arguments:
        model: in eval mode, on `device`.
        heads: names of the classifier's tensors.
        data: the images.
        resolution: pixels per side.
        device: of the model.

    Raises:
        Unsupported: the model has no such modules.
    """

    def __init__(
        self, model: nn.Module, heads: Mapping[str, int], data: ImageData, resolution: Resolution, device: str
    ) -> None:
        modules = dict(model.named_modules())
        names = dict.fromkeys(name.rpartition(".")[0] for name in heads)
        self._model, self._data, self._resolution, self._device = model, data, resolution, device
        self._classifiers = [modules[name] for name in names if name in modules]
        self._taken: list[Tensor] = []

    def features(self, split: Split, images: int | None = None) -> Features:
        """Features of a split, or of `images` of its images, evenly spaced; broken files are left out."""
        size = self._data.size(split)
        count = size if images is None else min(images, size)
        if count < 1:
            raise DataError(f"a probe needs images of {split}, and {self._data.name} has none there.")
        chosen = [index * size // count for index in range(count)]
        step = batch_for(self._resolution)
        with self._hooks(), torch.inference_mode():
            parts = [self._batch(split, chosen[first : first + step]) for first in range(0, count, step)]
        values = np.concatenate([values for values, _ in parts])
        if not np.isfinite(values).all():
            raise InvalidOutput(f"the features of images of {split} are not finite.")
        return Features(values=values, labels=np.concatenate([labels for _, labels in parts]))

    def _batch(self, split: Split, indices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = self._data.batch(split, indices, self._resolution, device=self._device)
        self._taken.clear()
        self._model(images)
        if not self._taken:
            raise Unsupported(
                "no classifier was found in the model: a probe takes what enters an nn.Linear or nn.Conv2d "
                "whose shape depends on num_classes."
            )
        return torch.cat(self._taken, dim=1).float().cpu().numpy(), labels.cpu().numpy()

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        """Collect the classifiers' inputs while the model runs."""

        def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._taken.append(_pooled(inputs[0], isinstance(module, nn.Conv2d)))

        handles = [module.register_forward_pre_hook(take) for module in self._classifiers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _pooled(features: Tensor, channels_first: bool) -> Tensor:
    """(batch, features), the mean over positions where a classifier is applied to each."""
    if channels_first:
        return features.flatten(2).mean(2)
    return features if features.ndim == 2 else features.flatten(1, -2).mean(1)


def fit_probe(kind: Kind, train: Features, classes: Sequence[str] = ()) -> Fitted:
    """Choose a setting by cross-validation on training images, and fit it on all of them.

    Arguments:
        kind: of the probe.
        train: of the training images, in any order.
        classes: names of the classes, for messages.

    Raises:
        DataError: there are fewer than two classes, or fewer than two images of a class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = _folds(train.labels, classes)
    estimator, grid = _estimator(kind, len(train.labels) * (folds - 1) // folds)
    shuffled = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search = GridSearchCV(estimator, grid, cv=shuffled, error_score="raise").fit(
            train.values, train.labels
        )
    ((parameter, value),) = search.best_params_.items()
    short = "k" if parameter.endswith("n_neighbors") else "C"
    return Fitted(
        kind=kind,
        estimator=search.best_estimator_,
        setting=f"{short}={value:g}",
        validated=float(search.best_score_),
        train_images=len(train.labels),
    )


def _folds(labels: NDArray[np.int64], classes: Sequence[str]) -> int:
    counts = Counter(labels.tolist())
    if len(counts) < 2:
        raise DataError("a probe needs training images of two classes or more.")
    rarest, count = min(counts.items(), key=lambda item: item[1])
    if count < 2:
        name = classes[rarest] if classes else str(rarest)
        raise DataError(
            "a probe chooses its setting by cross-validation, which needs two training images per class; "
            f"{name} has one."
        )
    return min(FOLDS, count)


def _estimator(kind: Kind, images: int) -> tuple[Any, dict[str, list[float]]]:
    """The estimator, and its candidates where `images` training images are left in a fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    if kind == "knn":
        neighbours = [k for k in NEIGHBOURS if k <= images]
        return make_pipeline(Normalizer(), KNeighborsClassifier()), {
            "kneighborsclassifier__n_neighbors": list(map(int, neighbours))
        }
    regression = LogisticRegression(max_iter=ITERATIONS)
    return make_pipeline(StandardScaler(), regression), {"logisticregression__C": [*STRENGTHS]}
