"""Options several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, get_args

import typer

from longvis_bench.errors import LongvisError
from longvis_bench.records import ClassOrder, DataSpec, TrainLength

ModelsDirs = Annotated[
    list[Path] | None, typer.Option("--models-dir", help="Further folder of cards; may be given again.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu.")]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads; default: all usable cores.", min=1)
]
Data = Annotated[str, typer.Option("--data", help="Labelled images: digits, pairs or folder:PATH.")]
Classes = Annotated[
    str | None, typer.Option("--classes", help="For folder:PATH: imagenet100, or a file with a class a line.")
]
ClassOrderOption = Annotated[
    ClassOrder | None,
    typer.Option(
        "--class-order",
        help="For folder:PATH: order of its classes, sorted (1, 10, 2; the default) or natural (1, 2, 10).",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="The weights that timm has, from the local cache or from --weights."),
]
Window = Annotated[
    str | None, typer.Option("--window", help="LO,HI: 16-bit pixel values that become black and white.")
]


def data_spec(data: str, classes: str | None, window: str | None) -> DataSpec:
    """What a user says about the data."""
    return DataSpec(data, classes, None if window is None else window_bounds(window))


def window_bounds(text: str) -> tuple[float, float]:
    """`100,4000` -> (100.0, 4000.0).

    Raises:
        LongvisError: it is not two finite numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = nan
    if not (isfinite(low) and isfinite(high)):
        raise LongvisError(f"--window takes two numbers, like 100,4000, not {text!r}.")
    return low, high


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size(text: str, option: str) -> int:
    """`8GiB`, `8G` -> 8589934592; `500MB` -> 500000000.

    Raises:
        LongvisError: it is no size of at least one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?b)?", text.strip().lower())
    if match is None:
        raise LongvisError(f"{option} takes a size like 8GiB or 500MB, not {text!r}.")
    number, prefix, ending = match.groups()
    factor = 1000 ** (" kmgt".index(prefix)) if prefix and ending == "b" else _UNITS[prefix]
    value = int(float(number) * factor)
    if value < 1:
        raise LongvisError(f"{option} takes a size of at least one byte, not {text!r}.")
    return value


def shard(text: str | None) -> tuple[int, int] | None:
    """`2/8` -> (2, 8).

    Raises:
        LongvisError: it is not of that form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None:
        raise LongvisError(f"--shard takes a part and the number of parts, like 2/8, not {text!r}.")
    return int(match[1]), int(match[2])


HoursFor = Annotated[
    str | None,
    typer.Option(
        "--hours-for",
        help="Also the hours that training takes on this device, e.g. 126689x320: images x epochs.",
    ),
]


def train_length(text: str) -> TrainLength:
    """The value of --hours-for.

    Raises:
        LongvisError: it is not images x epochs.
    """
    try:
        return TrainLength.parse(text)
    except ValueError as error:
        raise LongvisError(f"--hours-for is wrong: {error}.") from error


def batches(text: str) -> tuple[int | str, ...]:
    """`1,8,auto` -> (1, 8, "auto").

    Raises:
        LongvisError: some part is neither a whole number of at least 1 nor auto.
    """
    parts = [part.strip() for part in text.split(",")]
    sizes = [part if part == "auto" else numbers(part, "--batch (or auto)")[0] for part in parts]
    return tuple(dict.fromkeys(sizes))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """`1024,2048` -> (1024, 2048).

    Raises:
        LongvisError: some part is not a whole number of at least 1.
    """
    values = []
    for part in text.split(","):
        try:
            value = int(part)
        except ValueError:
            value = 0
        if value < 1:
            raise LongvisError(
                f"{option} takes whole numbers from 1 up, like 1024,2048, not {part.strip()!r}."
            )
        values.append(value)
    return tuple(dict.fromkeys(values))


def one(values: tuple[str, ...], option: str) -> str:
    """The only value.

    Raises:
        LongvisError: there are several.
    """
    if len(values) > 1:
        raise LongvisError(f"{option} takes one value, not {len(values)}.")
    return values[0]


def choices(text: str, option: str, literal: object) -> tuple[str, ...]:
    """`fp32,bf16` -> ("fp32", "bf16"), each one of a Literal's values.

    Raises:
        LongvisError: some part is none of them.
    """
    known: Sequence[str] = get_args(literal)
    values = tuple(part.strip() for part in text.split(",") if part.strip())
    for value in values or ("",):
        if value not in known:
            raise LongvisError(f"{option} takes {', '.join(known)}, not {value!r}.")
    return tuple(dict.fromkeys(values))
