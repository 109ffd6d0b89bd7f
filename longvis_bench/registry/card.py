"""The schema of `card.toml`: the declared facts of a family of models, without code.

Reading a card imports no model code; `registry.py` finds cards and builds models from their variants.
Unknown fields are errors, because a misspelt field would otherwise be lost silently.
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from longvis_bench.errors import CardError
from longvis_bench.text import has_controls

CARD_FILE = "card.toml"


def _plain_file(name: str) -> str:
    """A file name without folders, so that a card can only refer to files beside itself."""
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
Features = Literal["pyramid", "one map"]
Implementation = Literal["native", "timm", "upstream", "user"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Licences(_Strict):
    """Licences of the code, of the published weights, and of the weights that ship."""

    code: str
    """Licence of the code that longvis executes."""
    upstream: str | None = None
    """Licence of the authors' code, if longvis executes other code."""
    weights: str | None = None
    """Licence of the authors' published weights; absent if none are published."""
    trained: str | None = None
    """Licence of the weights that ship with this card; absent if none ship."""
    non_commercial: bool = False
    """Whether any of these licences forbids commercial use; every listing of the model shows it."""


class ResolutionRule(_Strict):
    """The legal resolutions: a multiple and bounds in pixels, or a function that decides."""

    multiple_of: int = Field(1, ge=1)
    minimum: int = Field(1, ge=1)
    maximum: int | None = None
    plan: FactoryReference | None = None
    """`module:function` with the signature that `sizes/plan.py` describes; replaces the numbers above."""
    rectangles: str | None = Field(None, min_length=1)
    """Which rectangles it takes, e.g. "each side a multiple of 32 px"; factory and plan function then get
    `(height, width)`.  Absent: squares only, and they get the whole number of pixels per side."""
    note: str = ""
    """One paragraph for the user: how the model is adapted to sizes other than the published ones."""


class Dependency(_Strict):
    """A package that the factory needs in addition to the dependencies of this project."""

    module: str
    """Name of the module in Python; the name of the distribution must differ in underscores only."""
    install: str
    """The exact command that installs it."""

    @property
    def package(self) -> str:
        """Name of the distribution, which has the version."""
        return self.module.partition(".")[0].replace("_", "-")


class ImplementationEntry(_Strict):
    """An alternative implementation of the same variants, selected by `name@implementation`."""

    factory: FactoryReference
    requires: tuple[Dependency, ...] = ()
    rectangles: bool = False
    """Whether this factory takes the rectangles of `ResolutionRule.rectangles`."""


class Counted(NamedTuple):
    """The condition for which cards state parameters and MACs."""

    resolution: int
    classes: int


COUNTED_AT = Counted(resolution=1024, classes=1000)


class VariantEntry(_Strict):
    """A named model of the family: the keyword arguments of its factory, and its counts."""

    arguments: dict[str, Any] = {}
    summary: str = ""
    params: int | None = Field(None, ge=1)
    """Unique parameters at 1024 px with 1000 classes, as counted by `scripts/card_counts.py`."""
    macs: int | None = Field(None, ge=1)
    """MACs per image at 1024 px with 1000 classes."""


class WeightsEntry(_Strict):
    """Weights of one variant for one dataset and resolution, and how they were trained."""

    variant: Name
    dataset: str
    resolution: int = Field(ge=1)
    num_classes: int = Field(ge=1)
    file: PlainFile | None = None
    """A safetensors file beside the card (shipped weights)."""
    url: str | None = None
    """Host and path of the authors' file (published weights); never downloaded at run time."""
    timm: str | None = None
    """timm's name of the same weights, with its tag; see `weights/timm_cache.py`."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    recipe: str | None = None
    epochs: int | None = None
    seed: int | None = None
    initial: PlainFile | None = None
    """The shipped file that training started from; absent if it started from random weights."""
    images_s: float | None = Field(None, gt=0)
    """Training images per second when this file was made; other load on the machine is not excluded."""
    top1: float | None = Field(None, ge=0, le=1)
    """Held-out top-1 accuracy of this file, 0-1."""
    images: int | None = None
    """Number of held-out images for `top1`."""
    note: str = ""

    @model_validator(mode="after")
    def _somewhere(self) -> WeightsEntry:
        if (self.file is None) == (self.url is None):
            raise ValueError("weights need either a file beside the card or a url, not both")
        if self.timm is not None and self.url is None:
            raise ValueError("`timm` names published weights, so the entry needs a url")
        if self.file is not None and self.sha256 is None:
            raise ValueError("a shipped weight file needs its sha256")
        return self


class Published(_Strict):
    """Numbers that the authors published; `macs_g` has multiply-adds, even where they are called FLOPs."""

    variant: Name
    source: str
    """Paper or page, e.g. "arXiv:2503.12355"."""
    table: str
    """Table of the source, e.g. "Table 1"."""
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
    arguments: dict[str, Any] = {}
    """Arguments of the model that the numbers belong to, where they are not those of the variant."""
    note: str = ""

    @property
    def model(self) -> str:
        """The variant, with `arguments` in brackets: a name that the registry finds."""
        inside = ",".join(f"{key}={value!r}" for key, value in sorted(self.arguments.items()))
        return f"{self.variant}[{inside}]" if inside else self.variant

    @property
    def batch(self) -> int | None:
        """The batch size that `hardware` states."""
        stated = re.search(r"\bbatch (\d+)", self.hardware or "")
        return int(stated[1]) if stated else None


NUMBERS = ("params_m", "macs_g", "top1_percent", "top5_percent", "throughput_img_s", "runtime_h")
"""Fields of `Published` that are numbers of a model."""


class Card(_Strict):
    """One family of models, as declared in its `card.toml`."""

    version: Literal[1] = Field(alias="schema")
    family: Name
    title: str
    summary: str
    paper: str | None = None
    paper_title: str | None = None
    authors: tuple[str, ...] = ()
    """Authors of the paper, first names first."""
    upstream: str | None = None
    commit: str | None = None
    factory: FactoryReference
    implementation: Implementation
    requires: tuple[Dependency, ...] = ()
    default_cuda: Name | None = None
    nano: Name | None = None
    """The variant for a CPU: the smallest, 0.2-0.5 M parameters."""
    tour: bool = False
    """Whether `longvis bench` without models runs the family; its nano variant ships weights then."""
    colour: str | None = Field(None, pattern=r"^#[0-9A-Fa-f]{6}$")
    """Colour of the family in figures; by default the figure chooses one."""
    marker: str | None = Field(None, pattern=r"^[os^v<>DdPXph*]$")
    """matplotlib marker of the family in figures; a card has both `colour` and `marker`, or neither."""
    dtypes: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
    """Supported dtypes; fp32 includes tf32."""
    notes: tuple[str, ...] = ()
    """Facts that a reader of this family's rows needs."""
    features: Features | None = None
    """What `--output features` gives: a pyramid of maps, or one map; absent if the family offers none."""
    growth: Growth | None = None
    """The authors' growth of the cost with the number of tokens n, at fixed windows and segments."""
    unsupported: dict[Literal["autocast", "torch.export", "onnx"], str] = {}
    """Ways to run or export the family in eval mode that fail -> reason; tests cover all others."""
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
        """Allow one file per variant, dataset and resolution, so that the choice is unambiguous."""
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


def read_printed(path: Path) -> list[dict[str, Decimal]]:
    """The published numbers of a card as they are printed: "45.0" keeps its last digit.

    Returns:
        For each entry of `Card.published`, in order, field -> number.

    Raises:
        CardError: the card cannot be read.
    """
    published = read_card(path).published
    entries = tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal).get("published", [])
    return [
        {name: Decimal(entry[name]) for name in NUMBERS if name in entry}
        for _, entry in zip(published, entries, strict=True)
    ]


def _refuse_controls(value: object, path: Path) -> None:
    """Raise CardError if a text of the card has control characters, which could drive a terminal."""
    if isinstance(value, str) and has_controls(value):
        raise CardError(f"the card {path} has control characters in {value[:40]!r}; remove them.")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        _refuse_controls(key, path)
        _refuse_controls(entry, path)


def _sentence(error: ValidationError) -> str:
    """The first three errors of a card, each with its field."""
    faults = []
    for fault in error.errors()[:3]:
        field = ".".join(str(part) for part in fault["loc"]) or "card"
        message = "unknown field" if fault["type"] == "extra_forbidden" else fault["msg"]
        faults.append(f"{field}: {message.removeprefix('Value error, ')}")
    more = error.error_count() - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more else "")
