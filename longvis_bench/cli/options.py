"""Options several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from longvis_bench.errors import LongvisError

ModelsDirs = Annotated[
    list[Path] | None, typer.Option("--models-dir", help="Further folder of cards; may be given again.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu.")]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads; default: all usable cores.", min=1)
]


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
