"""What a model must return: logits, or the maps of its backbone (`--output features`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from longvis_bench.errors import InvalidOutput
from longvis_bench.records import Cell, FeaturesRecord

Outputs = tuple[Tensor, ...]
"""The logits alone, or the maps, finest first."""


@dataclass(frozen=True)
class Logits:
    """Logits (batch, classes)."""

    num_classes: int
    word: ClassVar[str] = "logits"

    def parts(self, found: object, batch: int) -> Outputs:
        """What the model returned, as `Outputs`; costs nothing on the device.

        Raises:
            InvalidOutput: it is no tensor of the declared shape.
        """
        return (check_shape(found, batch, self.num_classes),)


@dataclass(frozen=True)
class Maps:
    """Maps (batch, channels, height, width) of declared strides."""

    strides: tuple[int, ...]
    size: tuple[int, int]
    """Height and width of the images, in pixels."""
    seen: list[FeaturesRecord] = field(default_factory=list, compare=False)
    """The record of the first maps that were looked at."""
    word: ClassVar[str] = "maps"

    def parts(self, found: object, batch: int) -> Outputs:
        """What the backbone returned, as `Outputs`; costs nothing on the device.

        Raises:
            InvalidOutput: it is no sequence of tensors, or a map has not the side that its stride says.
        """
        maps = tuple(found) if isinstance(found, list | tuple) else ()
        if len(maps) != len(self.strides) or not all(isinstance(one, Tensor) for one in maps):
            kind = f"{len(maps)} maps" if maps else type(found).__name__
            raise InvalidOutput(
                f"the backbone returned {kind}, not {len(self.strides)} maps of strides "
                f"{', '.join(map(str, self.strides))}."
            )
        for one, stride in zip(maps, self.strides, strict=True):
            self._check(one, stride, batch)
        if not self.seen:
            self.seen.append(self._to_record(maps))
        return maps

    def _check(self, found: Tensor, stride: int, batch: int) -> None:
        """A side may differ by one from size / stride: convolutions round up, or leave out a border."""
        sides = [side / stride for side in self.size]
        fits = found.ndim == 4 and all(
            abs(side - wanted) <= 1 for side, wanted in zip(found.shape[2:], sides, strict=True)
        )
        if not fits or len(found) != batch:
            height, width = (round(side) for side in sides)
            raise InvalidOutput(
                f"the backbone returned a map of shape {tuple(found.shape)}, not ({batch}, channels, "
                f"{height}, {width}): stride {stride} of {self.size[0]} x {self.size[1]} px."
            )

    def _to_record(self, maps: Outputs) -> FeaturesRecord:
        return FeaturesRecord(
            strides=self.strides,
            channels=tuple(one.shape[1] for one in maps),
            held_bytes=sum(one.numel() * one.element_size() for one in maps),
        )


Form = Logits | Maps


def form_of(cell: Cell, model: nn.Module, images: Tensor) -> Form:
    """What a cell's model must return.

    Arguments:
        cell: its output.
        model: as built for the cell; for features an `ops.feature_maps.Backbone`, compiled or not.
        images: (batch, channels, height, width).
    """
    if cell.output == "logits":
        return Logits(cell.num_classes)
    strides: tuple[int, ...] = getattr(model, "strides")  # noqa: B009  # a compiled model hands it on
    return Maps(strides, (images.shape[2], images.shape[3]))


def check_outputs(found: object, batch: int, form: Form) -> Outputs:
    """What a model returned, if it is finite and of the declared form.

    Raises:
        InvalidOutput: it is not; the message has the share of NaN, or both shapes.
    """
    parts = form.parts(found, batch)
    if not all(torch.isfinite(part).all() for part in parts):
        bad = sum(int((~torch.isfinite(part)).sum()) for part in parts)
        share = bad / sum(part.numel() for part in parts)
        raise InvalidOutput(
            f"{share:.0%} of the {form.word} are NaN or infinite; try fp32 or bf16, or other weights."
        )
    return parts


def check_shape(logits: object, batch: int, num_classes: int) -> Tensor:
    """The logits, if they are a tensor of the declared shape; costs nothing on the device.

    Raises:
        InvalidOutput: they are not; the message has the declared and the actual shape.
    """
    if not isinstance(logits, Tensor):
        raise InvalidOutput(
            f"the model returned {type(logits).__name__}, not a tensor of logits; return that alone."
        )
    if tuple(logits.shape) != (batch, num_classes):
        raise InvalidOutput(
            f"the model returned shape {tuple(logits.shape)}, not ({batch}, {num_classes}): "
            "one row of logits per image, whatever ran before."
        )
    return logits


def check_logits(logits: object, batch: int, num_classes: int) -> Tensor:
    """The logits, if they are finite and of the declared shape.

    Raises:
        InvalidOutput: they are not.
    """
    return check_outputs(logits, batch, Logits(num_classes))[0]


def difference(value: Outputs, reference: Outputs) -> float:
    """Max |a - b| / max |b|, in float64; of several maps the largest, each against its own size."""
    return max(_difference(a, b) for a, b in zip(value, reference, strict=True))


def _difference(value: Tensor, reference: Tensor) -> float:
    value, reference = value.double(), reference.double()
    scale = reference.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((value - reference).abs().max() / scale).item()


def first(outputs: Outputs) -> Outputs:
    """Those of the first image of a batch."""
    return tuple(part[:1] for part in outputs)
