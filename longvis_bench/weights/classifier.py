"""Identify the tensors of a model's classifier: by two builds with different class counts, or by its API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from longvis_bench.errors import IllegalSize, MissingDependency
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution
from longvis_bench.weights.classes import HEAD
from longvis_bench.weights.naming import by_model_names


def bare_model(variant: Variant, resolution: Resolution, num_classes: int) -> nn.Module | None:
    """The model on the meta device; None if it cannot be built there."""
    try:
        with torch.device("meta"):
            return variant.build(resolution=resolution, num_classes=num_classes)
    except (IllegalSize, MissingDependency):
        raise
    except Exception:
        return None


def classifier_dims(variant: Variant, resolution: Resolution, num_classes: int) -> dict[str, int]:
    """Name of each tensor whose shape depends on the number of classes -> the dimension that does.

    Raises:
        IllegalSize: the model does not take the resolution.
    """
    one, other = (bare_model(variant, resolution, classes) for classes in (num_classes, num_classes + 1))
    if one is None or other is None:
        return {}
    sizes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    return {
        name: next(dim for dim, size in enumerate(tensor.shape) if size != sizes[name][dim])
        for name, tensor in one.state_dict().items()
        if name in sizes and len(sizes[name]) == tensor.ndim and sizes[name] != tensor.shape
    }


def file_classes(
    variant: Variant,
    tensors: Mapping[str, Tensor],
    resolutions: Sequence[Resolution],
    num_classes: int,
    name: str,
) -> int | None:
    """Number of classes in a file, by the tensors of the model's classifier; None if unknown."""
    for resolution in resolutions:
        try:
            dims = classifier_dims(variant, resolution, num_classes)
            model = bare_model(variant, resolution, num_classes)
        except IllegalSize:
            continue
        if model is None or not dims:
            return None
        named, _ = by_model_names(model, tensors, model.state_dict(), name)
        counts = {
            named[key].shape[dim] for key, dim in dims.items() if key in named and named[key].ndim > dim
        }
        return counts.pop() if len(counts) == 1 else None
    return None


def order_classes(model: nn.Module, dims: Mapping[str, int], order: Sequence[int]) -> None:
    """Number a model's classes anew.

    Arguments:
        model: changed in place.
        dims: as `classifier_dims` gives them.
        order: for each class its index so far.
    """
    state = model.state_dict()
    for name, dim in dims.items():
        index = torch.tensor(order, device=state[name].device)
        state[name].copy_(state[name].index_select(dim, index))


def classifier_names(model: nn.Module) -> set[str]:
    """Names of the classifier's tensors, those of auxiliary classifiers included.

    Found by `get_classifier` and timm's configuration, by usual names, or as the last layer; added is every
    linear layer of the same shape.
    """
    known = {id(parameter) for module in _classifiers(model) for parameter in module.parameters()}
    found = {name for name, parameter in model.named_parameters() if id(parameter) in known}
    found = found or {name for name in model.state_dict() if HEAD.search(name)} or _last_layer(model)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    shapes = {module.weight.shape for name, module in linear.items() if f"{name}.weight" in found}
    alike = (name for name, module in linear.items() if module.weight.shape in shapes)
    return found | {f"{name}.{kind}" for name in alike for kind, _ in linear[name].named_parameters()}


def _classifiers(model: nn.Module) -> Iterator[nn.Module]:
    """Classifiers of a timm model: from `get_classifier`, and from its configuration, which also names
    auxiliary ones.  The model may wrap a timm model.
    """
    for module in model.modules():
        ask = getattr(module, "get_classifier", None)
        if callable(ask):
            found = ask()
            every = [*(found if isinstance(found, list | tuple) else [found]), *_configured(module)]
            yield from (one for one in every if isinstance(one, nn.Module))
            return


def _configured(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that timm's entry for the model calls its classifier."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    names = config.get("classifier") if isinstance(config, Mapping) else None
    modules = dict(model.named_modules())
    for name in names if isinstance(names, list | tuple) else [names]:
        if isinstance(name, str) and name in modules:
            yield modules[name]


def _last_layer(model: nn.Module) -> set[str]:
    """Weight and bias of the last module that has a weight."""
    layers = [
        name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), Tensor)
    ]
    return {f"{layers[-1]}.{kind}".removeprefix(".") for kind in ("weight", "bias")} if layers else set()
