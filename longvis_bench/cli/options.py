"""Options that several commands share, how their values are read, and the panels of `--help`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.records import ClassOrder, DataSpec, TrainLength
from longvis_bench.registry.names import split_names

T = TypeVar("T")

WHAT = "What to measure"
HOW = "How to measure"
DATA = "Data and weights"
RUN = "Run"
OUTPUT = "Output"


def reader(flag: str, read: Callable[[str], T]) -> Callable[[Any], T]:
    """A parser for typer, of a function that raises ValueError with what would be right.

    Returns:
        A function that raises LongvisError with the flag, what would be right and what was given.
    """

    def parse(text: Any) -> Any:
        if not isinstance(text, str):
            return text  # a default, which is a value already
        try:
            return read(text)
        except ValueError as error:
            raise LongvisError(f"{flag} takes {error}, not {text.strip()[:80]!r}.") from error

    return parse


def several(flag: str, read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A parser of values separated by commas; the option may be repeated, see `joined`."""
    return lambda text: tuple(reader(flag, read)(part) for part in text.split(","))


def joined(values: Iterable[tuple[T, ...]] | None) -> tuple[T, ...]:
    """The values of an option that was given once or several times, each value once."""
    return tuple(dict.fromkeys(value for given in values or () for value in given))


def names(flag: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of model names, separated by commas outside brackets."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(split_names(text))
        if not found:
            raise LongvisError(f"{flag} names no model: give names separated by commas, like atlas-s,vit-s.")
        return found

    return parse


def batch(text: str) -> int | str:
    """`8` -> 8; `auto` stays.

    Raises:
        ValueError: it is neither.
    """
    try:
        return text.strip() if text.strip() == "auto" else units.read_whole(text)
    except ValueError:
        raise ValueError("auto or whole numbers from 1 up, like 1,8") from None


def choice(known: Sequence[str]) -> Callable[[str], str]:
    """A reader of one of several words."""

    def read(text: str) -> str:
        if text.strip() not in known:
            raise ValueError(", ".join(known))
        return text.strip()

    return read


def choices(flag: str, literal: object, *more: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of values of a Literal type, separated by commas.

    Arguments:
        flag: for the message.
        literal: the type.
        more: further words that are allowed.
    """
    return several(flag, choice((*get_args(literal), *more)))


def window_bounds(text: str) -> tuple[float, float]:
    """`100,4000` -> (100.0, 4000.0).

    Raises:
        ValueError: it is not two finite numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = nan
    if not (isfinite(low) and isfinite(high)):
        raise ValueError("two numbers, like 100,4000")
    return low, high


def shard(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8).

    Raises:
        ValueError: it is not of that form.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if match is None:
        raise ValueError("a part and the number of parts, like 2/8")
    return int(match[1]), int(match[2])


def train_length(text: str) -> TrainLength:
    """`126689x320` -> 126689 images, 320 epochs.

    Raises:
        ValueError: it is not images x epochs.
    """
    try:
        return TrainLength.parse(text)
    except ValueError:
        raise ValueError("images x epochs, like 126689x320") from None


def complete_models(incomplete: str) -> list[str]:
    """Shell completion of model names: the last one of a list separated by commas.

    Reads cards only; a card that cannot be read completes nothing.
    """
    from longvis_bench.registry.registry import Registry

    before, comma, last = incomplete.rpartition(",")
    try:
        known = Registry().names()
    except LongvisError:
        return []
    return [f"{before}{comma}{name}" for name in known if name.startswith(last)]


def complete_families(incomplete: str) -> list[str]:
    """Shell completion of the names of families and models."""
    from longvis_bench.registry.registry import Registry

    try:
        registry = Registry()
    except LongvisError:
        return []
    known = [found.card.family for found in registry.cards] + registry.names()
    return [name for name in known if name.startswith(incomplete)]


MODELS_HELP = "Models, comma-separated: names, patterns like '*-s', or all; see `longvis models`."
NO_CACHE_HELP = "Compute counts, shapes and accuracies anew instead of reading them from the cache."
RES_HELP = "Pixels per side, e.g. 1024,2048 or 1k,2k."
WEIGHTS_HELP = (
    "Weight file: safetensors, or written by torch.save; FILE#KEY where it holds several sets; "
    "an index of shards; or a folder of save_pretrained."
)

Model = Annotated[
    str,
    typer.Argument(
        help="A model, as for `longvis bench`.", show_default=False, autocompletion=complete_models
    ),
]
OneRes = Annotated[
    int,
    typer.Option(
        "--res",
        "-r",
        metavar="PX",
        help="Pixels per side.",
        parser=reader("--res", units.read_pixels),
        rich_help_panel=WHAT,
    ),
]
ModelsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--models-dir", metavar="DIR", help="Further folder of model cards; repeatable.", rich_help_panel=DATA
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:N, mps or xpu.", rich_help_panel=HOW
    ),
]
Threads = Annotated[
    Any,
    typer.Option(
        "--threads",
        metavar="N",
        help="CPU threads.",
        show_default="OMP_NUM_THREADS, else all usable cores",
        parser=reader("--threads", units.read_whole),
        rich_help_panel=HOW,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data", metavar="NAME", help="Labelled images: digits, pairs or folder:PATH.", rich_help_panel=DATA
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="For folder:PATH: imagenet100, or a file with one class per line.",
        rich_help_panel=DATA,
    ),
]
ClassOrderOption = Annotated[
    ClassOrder | None,
    typer.Option(
        "--class-order",
        metavar="NAME",
        help="Order of the class folders of folder:PATH: sorted (1, 10, 2) or natural (1, 2, 10).",
        show_default="sorted",
        rich_help_panel=DATA,
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Use timm's pretrained weights from the local cache (or the file given by --weights).",
        rich_help_panel=DATA,
    ),
]
Ema = Annotated[
    bool,
    typer.Option(
        "--ema",
        help="Of the sets of weights in the file, use the moving average; FILE#KEY takes any other.",
        rich_help_panel=DATA,
    ),
]
Window = Annotated[
    Any,
    typer.Option(
        "--window",
        metavar="LO,HI",
        help="16-bit pixel values shown as black and white.",
        parser=reader("--window", window_bounds),
        rich_help_panel=DATA,
    ),
]
HoursFor = Annotated[
    Any,
    typer.Option(
        "--hours-for",
        metavar="NxE",
        help="Also report the hours of a training, e.g. 126689x320: images x epochs.",
        parser=reader("--hours-for", train_length),
        rich_help_panel=OUTPUT,
    ),
]


def with_ema(weights: Path | None, flag: str) -> Path:
    """The file with the key of its moving average.

    Raises:
        LongvisError: no file is given, or one of its sets is chosen already.
    """
    from longvis_bench.weights.files import split_key

    if weights is None or split_key(weights)[1]:
        raise LongvisError(f"--ema chooses among the sets of weights in a file: give it with {flag} FILE.")
    return weights.with_name(f"{weights.name}#ema")


def data_spec(
    data: str,
    classes: str | None,
    window: tuple[float, float] | None,
    class_order: ClassOrder | None = None,
) -> DataSpec:
    """What a user says about the data."""
    return DataSpec(data, classes, window, class_order=class_order or "sorted")
