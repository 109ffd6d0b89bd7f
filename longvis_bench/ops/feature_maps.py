"""A model without its head: from images to the maps that a detector or a segmenter reads.

Two kinds of models offer maps.  Those with a method `forward_maps`, the hook of this package:

    forward_maps(image)    image (batch, channels, height, width) -> the maps, finest first, each
                           (batch, its channels, height / stride, width / stride)
    map_strides            the stride of each map, in pixels of the image
    head_modules           names of what only the logits need: submodules or parameters (optional)

and those of timm with its `forward_intermediates`, `prune_intermediate_layers` and `feature_info`.  Of these,
the last map of each stride is taken, from stride 4 on, as pyramids of detectors begin there.

A map is what the last block of a stage gives.  Norms that follow the last stage, and pooling, belong to the
head: it is replaced by nothing, so that it is neither run nor counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from longvis_bench.errors import NoMaps

FINEST_STRIDE = 4
"""Least stride of the maps that are taken of a timm model, in pixels."""


class OffersMaps(Protocol):
    """A module with the hook."""

    map_strides: Sequence[int]

    def forward_maps(self, image: Tensor) -> Sequence[Tensor]:
        """The maps of a batch of images, finest first."""


class Backbone(nn.Module):
    """A model without its head.

    Arguments:
        model: from images to logits; it loses its head.
        strides: of its maps, finest first.
        indices: of timm's intermediate maps; None for a model with the hook.
    """

    def __init__(self, model: nn.Module, strides: Sequence[int], indices: Sequence[int] | None) -> None:
        super().__init__()
        self.backbone = model
        self.strides = tuple(strides)
        self.indices = None if indices is None else list(indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image (batch, channels, height, width) -> maps (batch, channels, height, width), finest first."""
        model: Any = self.backbone
        if self.indices is None:
            return tuple(model.forward_maps(image))
        return tuple(
            model.forward_intermediates(
                image, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """That of the model.

        Raises:
            AssertionError: it has none, as timm's models say it.
        """
        setter: Callable[[bool], object] | None = getattr(self.backbone, "set_grad_checkpointing", None)
        assert setter is not None
        setter(enable)

    @property
    def scan_backend(self) -> Any:
        """That of the model; see `measure/cell.py`."""
        return getattr(self.backbone, "scan_backend", None)


def offers_maps(model: nn.Module) -> bool:
    """Whether `without_head` takes a model."""
    return hasattr(model, "forward_maps") or _is_timm_style(model)


def without_head(model: nn.Module, name: str) -> Backbone:
    """A model's backbone, which holds the model itself.

    Arguments:
        model: on any device; it loses its head.
        name: for messages.

    Raises:
        NoMaps: the model offers none.
    """
    if hasattr(model, "forward_maps"):
        strides = getattr(model, "map_strides", None)
        if not strides:
            raise NoMaps(f"{name} has forward_maps without their strides; add map_strides = (4, 8, ...).")
        _remove(model, getattr(model, "head_modules", ()))
        return Backbone(model, strides, None)
    if not _is_timm_style(model):
        raise NoMaps(
            f"{name} offers no maps, as its model has neither forward_maps nor timm's forward_intermediates; "
            "use --output logits."
        )
    pyramid: Any = model
    reductions = [int(entry["reduction"]) for entry in _entries(pyramid.feature_info)]
    indices = last_of_each(reductions)
    pyramid.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    return Backbone(model, [reductions[index] for index in indices], indices)


def last_of_each(strides: Sequence[int]) -> list[int]:
    """Index of the last entry of each stride from `FINEST_STRIDE` on, in the given order."""
    last = {stride: index for index, stride in enumerate(strides)}
    return sorted(index for stride, index in last.items() if stride >= FINEST_STRIDE)


def stage_maps(x: Tensor, stages: Iterable[nn.Module]) -> list[Tensor]:
    """Run stages that have `blocks`, or a method `mix` around them, and a `downsample` after that.

    Arguments:
        x: what the first stage takes.
        stages: in order; the last one's `downsample` is not run.

    Returns:
        What each stage gives before its `downsample`, in its layout.
    """
    maps: list[Tensor] = []
    downsample: nn.Module = nn.Identity()
    for stage in stages:
        mix: Callable[[Tensor], Tensor] = getattr(stage, "mix", None) or cast("nn.Module", stage.blocks)
        x = mix(downsample(x))
        maps.append(x)
        downsample = cast("nn.Module", stage.downsample)
    return maps


def channels_first(maps: Iterable[Tensor]) -> list[Tensor]:
    """Maps (batch, height, width, channels) -> views (batch, channels, height, width)."""
    return [grid.permute(0, 3, 1, 2) for grid in maps]


def _is_timm_style(model: nn.Module) -> bool:
    return all(
        hasattr(model, name)
        for name in ("forward_intermediates", "prune_intermediate_layers", "feature_info")
    )


def _entries(info: Any) -> list[dict[str, Any]]:
    """Facts of timm about the maps: a list before, and an object with a list in `info` after its wrapping."""
    return list(getattr(info, "info", info))


def _remove(model: nn.Module, names: Iterable[str]) -> None:
    """Replace submodules by nothing, and parameters by None."""
    for name in names:
        path, _, own = name.rpartition(".")
        parent = model.get_submodule(path)
        kept = getattr(parent, own)
        setattr(parent, own, nn.Identity() if isinstance(kept, nn.Module) else None)
