"""The schema of `card.toml`: every declarative fact of a family of models, and nothing that runs.

A card is data.  Reading it imports no model code; `registry.py` finds cards and turns their variants into
models.  Unknown fields are refused, because a misspelt field that is silently ignored is a wrong fact.
"""

from __future__ import annotations

import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from longvis_bench.errors import CardError
from longvis_bench.text import has_controls

CARD_FILE = "card.toml"


def _plain_file(name: str) -> str:
    """A file beside the card: no folders, so that a card cannot name a file elsewhere on the disk."""
    if PurePosixPath(name).name != name or "\\" in name or name in (".", ".."):
        raise ValueError(f"{name!r} must be a plain file name beside the card")
    return name


def _factory_reference(reference: str) -> str:
    """`package.module:callable`, or `file.py:callable` beside the card."""
    target, colon, attribute = reference.partition(":")
    if not colon or not attribute.isidentifier() or not target:
        raise ValueError(f"{reference!r} must read 'package.module:callable' or 'file.py:callable'")
    if target.endswith(".py"):
        _plain_file(target)
    return reference


PlainFile = Annotated[str, AfterValidator(_plain_file)]
FactoryReference = Annotated[str, AfterValidator(_factory_reference)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Growth = Literal["linear", "n log n", "quadratic"]
Implementation = Literal["native", "timm", "upstream", "user"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Licences(_Strict):
    """What the user may do with the code, the published weights, and weights trained with the code."""

    code: str
    """Licence of the code that runs."""
    upstream: str | None = None
    """Licence of the authors' code, where it is not the code that runs."""
    weights: str | None = None
    """Licence of the authors' published weights; absent where none are published."""
    trained: str | None = None
    """Licence of the weights that ship with this card; absent where none ship."""
    non_commercial: bool = False
    """True where any of these forbids commercial use; shown wherever the model is listed."""


class ResolutionRule(_Strict):
    """Which resolutions are legal: a multiple and bounds in pixels, or a function that knows."""

    multiple_of: int = Field(1, ge=1)
    minimum: int = Field(1, ge=1)
    maximum: int | None = None
    plan: FactoryReference | None = None
    """`module:function` of the form described in `sizes/plan.py`; replaces the numbers above."""
    note: str = ""
    """One paragraph for the user: what happens to the model at sizes it was not published for."""


class Dependency(_Strict):
    """A package the factory needs beyond this project's own dependencies."""

    module: str
    """As Python imports it; as pip names it too, but for underscores."""
    install: str
    """The exact command that adds it."""

    @property
    def package(self) -> str:
        """The name under which its version is installed."""
        return self.module.partition(".")[0].replace("_", "-")


class ImplementationEntry(_Strict):
    """Another way to run the same variants, chosen as `name@implementation`."""

    factory: FactoryReference
    requires: tuple[Dependency, ...] = ()


class Counted(NamedTuple):
    """The condition that a card's counts hold for."""

    resolution: int
    classes: int


COUNTED_AT = Counted(resolution=1024, classes=1000)


class VariantEntry(_Strict):
    """A named size: the keyword arguments its factory is called with, and what it amounts to."""

    arguments: dict[str, Any] = {}
    summary: str = ""
    params: int | None = Field(None, ge=1)
    """Unique parameters at 1024 px with 1000 classes, as counted by `scripts/card_counts.py`."""
    macs: int | None = Field(None, ge=1)
    """MACs of one image at 1024 px with 1000 classes."""


class WeightsEntry(_Strict):
    """Weights of one variant for one data set and resolution, and how they came to be."""

    variant: Name
    dataset: str
    resolution: int = Field(ge=1)
    num_classes: int = Field(ge=1)
    file: PlainFile | None = None
    """A safetensors file beside the card (shipped weights)."""
    url: str | None = None
    """Host and path of the authors' file (published weights); never downloaded at run time."""
    timm: str | None = None
    """timm's name of the same weights, with its tag; see `pretrained.py`."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    recipe: str | None = None
    epochs: int | None = None
    seed: int | None = None
    initial: PlainFile | None = None
    """The shipped file that training started from; absent where it started from nothing."""
    images_s: float | None = Field(None, gt=0)
    """Training images a second while this file was made, on whatever else the machine did then."""
    top1: float | None = Field(None, ge=0, le=1)
    """Held-out top-1 of this very file, 0-1."""
    images: int | None = None
    """Held-out images that `top1` was measured on."""
    note: str = ""

    @model_validator(mode="after")
    def _somewhere(self) -> WeightsEntry:
        if (self.file is None) == (self.url is None):
            raise ValueError("weights need either a file beside the card or a url, not both")
        if self.timm is not None and self.url is None:
            raise ValueError("timm's name is for published weights: those with a url")
        if self.file is not None and self.sha256 is None:
            raise ValueError("a shipped weight file needs its sha256")
        return self


class Published(_Strict):
    """Numbers as the authors printed them; multiply-adds under `macs_g` whatever they called them."""

    variant: Name
    source: str
    """Paper or page, e.g. "arXiv:2503.12355"."""
    table: str
    """Where in the source, e.g. "Table 1"."""
    resolution: int | None = None
    dataset: str | None = None
    epochs: int | None = None
    params_m: float | None = None
    macs_g: float | None = None
    top1_percent: float | None = None
    top5_percent: float | None = None
    throughput_img_s: float | None = None
    runtime_h: float | None = None
    hardware: str | None = None
    note: str = ""


class Card(_Strict):
    """One family of models, as its `card.toml` states it."""

    version: Literal[1] = Field(alias="schema")
    family: Name
    title: str
    summary: str
    paper: str | None = None
    paper_title: str | None = None
    authors: tuple[str, ...] = ()
    """Of the paper, first names first."""
    upstream: str | None = None
    commit: str | None = None
    factory: FactoryReference
    implementation: Implementation
    requires: tuple[Dependency, ...] = ()
    default_cuda: Name | None = None
    nano: Name | None = None
    """The variant of the quick default on a CPU."""
    colour: str | None = Field(None, pattern=r"^#[0-9A-Fa-f]{6}$")
    """Of the family's series in figures; absent: one is chosen."""
    marker: str | None = Field(None, pattern=r"^[os^v<>DdPXph*]$")
    """matplotlib's letter of the family's points in figures; given where `colour` is."""
    dtypes: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
    """Where fp32 runs, tf32 does too."""
    notes: tuple[str, ...] = ()
    """What the user must know to read this family's rows."""
    growth: Growth | None = None
    """How the authors say that the cost grows with the number of tokens n, windows and segments held."""
    unsupported: dict[Literal["autocast", "torch.export", "onnx"], str] = {}
    """Ways to run or export the family in eval mode that fail, each with its reason; others are tested."""
    licences: Licences
    resolution: ResolutionRule = ResolutionRule()
    implementations: dict[Literal["upstream", "timm"], ImplementationEntry] = {}
    variants: dict[Name, VariantEntry] = Field(min_length=1)
    weights: tuple[WeightsEntry, ...] = ()
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self) -> Card:
        named = [self.default_cuda, self.nano, *(w.variant for w in self.weights)]
        named += [p.variant for p in self.published]
        for name in named:
            if name is not None and name not in self.variants:
                raise ValueError(f"{name!r} is not one of the card's variants")
        return self

    @model_validator(mode="after")
    def _both_or_neither(self) -> Card:
        if (self.colour is None) != (self.marker is None):
            raise ValueError("figures need both a colour and a marker, or neither")
        return self

    @model_validator(mode="after")
    def _one_file_each(self) -> Card:
        """Which file counts is never a choice: one for a variant, data set and resolution."""
        conditions = [(w.variant, w.dataset, w.resolution) for w in self.weights if w.file is not None]
        for condition in conditions:
            if conditions.count(condition) > 1:
                variant, dataset, resolution = condition
                raise ValueError(f"two files for {variant} on {dataset} at {resolution} px; keep one")
        return self


def read_card(path: Path) -> Card:
    """Read and check one card.

    Raises:
        CardError: the file is not TOML, or a field is unknown, missing or of the wrong kind.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        _refuse_controls(content, path)
        return Card.model_validate(content)
    except OSError as error:
        raise CardError(f"cannot read the card {path}: {error.strerror or error}.") from error
    except RecursionError as error:
        raise CardError(f"the card {path} is not valid TOML: it is nested too deeply.") from error
    except ValidationError as error:
        raise CardError(f"the card {path} does not follow the schema: {_sentence(error)}.") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise CardError(f"the card {path} is not valid TOML: {error}.") from error


def _refuse_controls(value: object, path: Path) -> None:
    """Raise CardError where a text holds characters that a terminal would obey."""
    if isinstance(value, str) and has_controls(value):
        raise CardError(f"the card {path} holds control characters, in {value[:40]!r}; remove them.")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        _refuse_controls(key, path)
        _refuse_controls(entry, path)


def _sentence(error: ValidationError) -> str:
    """The first few faults of a card, each with its field."""
    faults = []
    for fault in error.errors()[:3]:
        field = ".".join(str(part) for part in fault["loc"]) or "card"
        message = "unknown field" if fault["type"] == "extra_forbidden" else fault["msg"]
        faults.append(f"{field}: {message.removeprefix('Value error, ')}")
    more = error.error_count() - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more else "")
