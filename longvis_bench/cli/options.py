"""Options that several commands share, parsers of their values, and the panels of `--help`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.registry.names import split_names
from longvis_bench.resolution import Fit

if TYPE_CHECKING:
    from longvis_bench.records import ClassOrder, DataSpec, TrainLength

T = TypeVar("T")

WHAT = "What to measure"
HOW = "How to measure"
DATA = "Data and weights"
RUN = "Run"
OUTPUT = "Output"


def reader(flag: str, read: Callable[[str], T]) -> Callable[[Any], T]:
    """Make a parser for typer from a function that raises ValueError with the valid values.

    Returns:
        A function that raises LongvisError with the flag, the valid values and the given value.
    """

    def parse(text: Any) -> Any:
        if not isinstance(text, str):
            return text  # a default, which is parsed already
        try:
            return read(text)
        except ValueError as error:
            raise LongvisError(f"{flag} takes {error}, not {text.strip()[:80]!r}.") from error

    return parse


def several(flag: str, read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A parser of comma-separated values; the option may be repeated, see `joined`."""
    return lambda text: tuple(reader(flag, read)(part) for part in text.split(","))


def joined(values: Iterable[tuple[T, ...]] | None) -> tuple[T, ...]:
    """All values of an option given once or several times, without duplicates."""
    return tuple(dict.fromkeys(value for given in values or () for value in given))


def names(flag: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of model names that are separated by commas outside brackets."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(split_names(text))
        if not found:
            raise LongvisError(f"{flag} names no model: give names separated by commas, like atlas-s,vit-s.")
        return found

    return parse


def batch(text: str) -> int | str:
    """`8` -> 8; `auto` is kept.

    Raises:
        ValueError: the text is neither.
    """
    try:
        return text.strip() if text.strip() == "auto" else units.read_whole(text)
    except ValueError:
        raise ValueError("auto or whole numbers from 1 up, like 1,8") from None


def choice(known: Sequence[str]) -> Callable[[str], str]:
    """A parser of one of several words."""

    def read(text: str) -> str:
        if text.strip() not in known:
            raise ValueError(", ".join(known))
        return text.strip()

    return read


def choices(flag: str, literal: object, *more: str) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated values of a Literal type.

    Arguments:
        flag: the option, for messages.
        literal: the type.
        more: further allowed words.
    """
    return several(flag, choice((*get_args(literal), *more)))


def window_bounds(text: str) -> tuple[float, float]:
    """`100,4000` -> (100.0, 4000.0).

    Raises:
        ValueError: the text is not two finite numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = nan
    if not (isfinite(low) and isfinite(high)):
        raise ValueError("two numbers, like 100,4000")
    return low, high


def band_numbers(text: str) -> tuple[int, ...]:
    """`3,2,1` -> (3, 2, 1).

    Raises:
        ValueError: the text is not one or three whole numbers from 1 on.
    """
    match = re.fullmatch(
        r"([1-9]\d{0,3})(?:,([1-9]\d{0,3}),([1-9]\d{0,3}))?", text.replace(" ", ""), re.ASCII
    )
    if match is None:
        raise ValueError("one or three numbers of bands, from 1, like 3,2,1")
    return tuple(int(number) for number in match.groups() if number is not None)


def shard(text: str) -> tuple[int, int] | Literal["auto"]:
    """`2/8` -> (2, 8); `auto` is kept.

    Raises:
        ValueError: the text has another form.
    """
    if text.strip() == "auto":
        return "auto"
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    if match is None:
        raise ValueError("auto, or a part and the number of parts, like 2/8")
    return int(match[1]), int(match[2])


def train_length(text: str) -> TrainLength:
    """`126689x320` -> 126689 images, 320 epochs.

    Raises:
        ValueError: the text is not images x epochs.
    """
    from longvis_bench.records import TrainLength

    try:
        return TrainLength.parse(text)
    except ValueError:
        raise ValueError("images x epochs, like 126689x320") from None


def class_order(text: str) -> str:
    """`natural` -> natural.

    Raises:
        ValueError: it is no order of classes.
    """
    from longvis_bench.records import ClassOrder

    return choice(get_args(ClassOrder))(text)


def complete_models(incomplete: str) -> list[str]:
    """Shell completion of the last name of a comma-separated list of models.

    Reads cards only; there is no completion if a card cannot be read.
    """
    from longvis_bench.registry.registry import Registry

    before, comma, last = incomplete.rpartition(",")
    try:
        known = Registry().names()
    except LongvisError:
        return []
    return [f"{before}{comma}{name}" for name in known if name.startswith(last)]


def complete_families(incomplete: str) -> list[str]:
    """Shell completion of names of families and models."""
    from longvis_bench.registry.registry import Registry

    try:
        registry = Registry()
    except LongvisError:
        return []
    known = [found.card.family for found in registry.cards] + registry.names()
    return [name for name in known if name.startswith(incomplete)]


def complete_presets(incomplete: str) -> list[str]:
    """Shell completion of the names of published tables."""
    from longvis_bench.registry.presets import presets
    from longvis_bench.registry.registry import Registry

    try:
        known = presets(Registry())
    except LongvisError:
        return []
    return [name for name in known if name.startswith(incomplete)]


def output_name(text: str) -> str:
    """`logits` or `features`."""
    from longvis_bench.records import Output

    return choice(get_args(Output))(text)


def _output(**more: Any) -> Any:
    """The option --output."""
    return typer.Option(
        "--output",
        metavar="NAME",
        help="logits, or features: the maps of the backbone without its head.",
        parser=reader("--output", output_name),
        rich_help_panel=WHAT,
        **more,
    )


MODELS_HELP = "Models, comma-separated: names, patterns like '*-s', or all; see `longvis models`."
NO_CACHE_HELP = "Compute counts, shapes and accuracies again instead of reading them from the cache."
RES_HELP = "Pixels per side, or width x height, e.g. 1024,2560x1920 or 1k,2k."
WEIGHTS_HELP = (
    "Weight file: safetensors or torch.save; FILE#KEY for one of several sets in a file; "
    "an index of shards; or a folder of save_pretrained."
)

Model = Annotated[
    str,
    typer.Argument(
        help="A model, as for `longvis bench`.", show_default=False, autocompletion=complete_models
    ),
]
Models = Annotated[
    list[Any],
    typer.Option(
        "--models",
        "-m",
        metavar="NAMES",
        help=MODELS_HELP,
        parser=names("--models"),
        autocompletion=complete_models,
        rich_help_panel=WHAT,
    ),
]
OneRes = Annotated[
    Any,
    typer.Option(
        "--res",
        "-r",
        metavar="PX",
        help="Pixels per side, or width x height, e.g. 2560x1920.",
        parser=reader("--res", units.read_pixels),
        rich_help_panel=WHAT,
    ),
]
ModelsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--models-dir",
        metavar="DIR",
        help="Additional folder of model cards; repeatable.",
        rich_help_panel=DATA,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:N, mps or xpu.", rich_help_panel=HOW
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="NAMES",
        help="Several devices at once: all, cuda:0,cuda:3, or cpu:2x8 for two of eight cores each.",
        rich_help_panel=HOW,
    ),
]
Overlap = Annotated[
    bool | None,
    typer.Option(
        "--overlap",
        help="With several CPU devices, time cells side by side, too, which disturbs their latencies.",
        rich_help_panel=HOW,
    ),
]
World = Annotated[
    int | None,
    typer.Option(
        "--world",
        metavar="N",
        help="Measure a training step on N devices of this machine together (with --mode train).",
        show_default="1",
        parser=reader("--world", units.read_whole),
        rich_help_panel=HOW,
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
        "--data",
        metavar="NAME",
        help="Labelled images: digits, lookup, pairs or folder:PATH.",
        rich_help_panel=DATA,
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
    Any,
    typer.Option(
        "--class-order",
        metavar="NAME",
        help="Order of the class folders of folder:PATH: sorted (1, 10, 2) or natural (1, 2, 10).",
        show_default="sorted",
        parser=reader("--class-order", class_order),
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
        help="Pixel values that become black and white, for images of more than 8 bits.",
        parser=reader("--window", window_bounds),
        rich_help_panel=DATA,
    ),
]
Bands = Annotated[
    Any,
    typer.Option(
        "--bands",
        metavar="R,G,B",
        help="Bands to take from images of several, counted from 1: one or three, e.g. 3,2,1.",
        parser=reader("--bands", band_numbers),
        rich_help_panel=DATA,
    ),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(
        "--fit",
        metavar="HOW",
        help="How images of a folder get the shape of the input: crop, pad (by the mean) or stretch.",
        show_default="crop",
        rich_help_panel=DATA,
    ),
]
OutputOption = Annotated[str, _output()]
SweepOutput = Annotated[str | None, _output(show_default="logits")]
HoursFor = Annotated[
    Any,
    typer.Option(
        "--hours-for",
        metavar="NxE",
        help="Also report the hours of a training of this length: images x epochs, e.g. 126689x320.",
        parser=reader("--hours-for", train_length),
        rich_help_panel=OUTPUT,
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="NAME",
        help="Also show the time per image over that of this model, with its 95 % interval.",
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
        raise LongvisError(
            f"--ema selects one of several sets of weights in a file; give the file with {flag} FILE."
        )
    return weights.with_name(f"{weights.name}#ema")


def data_spec(
    data: str,
    classes: str | None,
    window: tuple[float, float] | None,
    class_order: ClassOrder | None = None,
    bands: tuple[int, ...] | None = None,
    fit: Fit | None = None,
) -> DataSpec:
    """The data set from the options of a command.

    Raises:
        DataError: both a list of classes and an order are given.
    """
    from longvis_bench.data.folder import refuse_two_orders
    from longvis_bench.records import DataSpec

    refuse_two_orders(classes, class_order)
    return DataSpec(
        data, classes, window, class_order=class_order or "sorted", bands=bands, fit=fit or "crop"
    )
