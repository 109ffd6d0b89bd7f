"""Token mixers by name: `mixers.toml` declares them, and `mixer:NAME` is a model of blocks around one.

A mixer's factory takes `dim`, `heads` and `grid` (rows, columns), and returns a module from
(batch, rows, columns, dim) to the same.  The network around it (`backbones/mixer_network.py`) makes it a
model of images, so that everything that measures models measures mixers.  A `mixers.toml` may stand in any
folder that may have a card.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longvis_bench.errors import CardError, IllegalSize, UnknownName
from longvis_bench.files import PACKAGE
from longvis_bench.registry.card import FactoryReference, Name
from longvis_bench.registry.discovery import BUILT_IN, find_files
from longvis_bench.registry.registry import MIXER, Variant
from longvis_bench.resolution import AnyResolution, Rectangle, resolution_of, sides
from longvis_bench.sizes.mixers import NETWORK, frame_macs, side_of
from longvis_bench.sizes.plan import SizePlan
from longvis_bench.text import has_controls

MIXERS_FILE = "mixers.toml"
FAMILY = "mixer"
ANY_GRID = "longvis_bench.sizes.mixers:any_grid"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedMixer(_Strict):
    """What a paper prints of a mixer in a network like ours, for a training."""

    source: str
    table: str
    tokens: int
    dim: int
    heads: int
    blocks: int
    minutes: float
    ratio: float
    """Runtime over that of the table's reference."""
    top1_percent: float
    name: str
    """What the table calls it."""


class MixerEntry(_Strict):
    """One mixer."""

    title: str
    summary: str
    paper: str | None = None
    factory: FactoryReference
    plan: FactoryReference = ANY_GRID
    """Which grids are legal, and what follows from them; see `sizes/mixers.py`."""
    arguments: dict[str, Any] = {}
    """Of the factory and the plan function, beside those of the network."""
    whole: bool = False
    """Whether it is a whole block, with residuals and MLPs inside."""
    published: tuple[PublishedMixer, ...] = ()


class MixersFile(_Strict):
    """The content of a `mixers.toml`."""

    version: Literal[1] = Field(alias="schema")
    mixers: dict[Name, MixerEntry] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class MixerVariant(Variant):
    """A network of blocks around a mixer."""

    entry: MixerEntry

    def plan(self, resolution: AnyResolution) -> SizePlan:
        """The grid of an image of this size, and what of the mixer follows from it; see `Variant.plan`."""
        size = resolution_of(resolution)
        if isinstance(size, Rectangle):
            raise IllegalSize(size, "the network around a mixer takes squares only", sorted(size))
        side_of(size, self.arguments["patch"])
        return self._call_plan(self.entry.plan, size)

    def check_factory(self) -> None:
        """See `Variant.check_factory`; the user's arguments may be the mixer's or the network's."""
        own = {key: value for key, value in self.overrides.items() if key not in NETWORK}
        Variant.check_factory(replace(self, overrides=own))

    def source_files(self) -> list[Path]:
        """The file of the mixer's factory, and the network's."""
        return [*Variant.source_files(self), PACKAGE / "backbones" / "mixer_network.py"]

    def load_factory(self) -> Callable[..., Any]:
        """The factory of the network; see `Variant.load_factory`."""
        from longvis_bench.backbones.mixer_network import network_of

        return network_of(Variant.load_factory(self), whole=self.entry.whole)

    def mixer_macs(self, macs: int, resolution: AnyResolution, classes: int) -> float:
        """MACs per image of one block's mixer, from those of the model.

        Arguments:
            macs: of the model.
            resolution: pixels per side.
            classes: logits.
        """
        side = min(sides(resolution))
        rest = frame_macs(side, classes, whole=self.entry.whole, **self.arguments)
        return (macs - rest) / int(self.arguments["blocks"])


def find_mixers(models_dirs: Sequence[Path] = (), working_dir: Path | None = None) -> list[MixerVariant]:
    """All mixers, in the order of their files.

    Raises:
        CardError: a file cannot be read, or two name the same mixer.
    """
    found: dict[str, MixerVariant] = {}
    for file, origin in find_files(MIXERS_FILE, models_dirs, working_dir or Path.cwd()):
        for name, entry in _read(file, file.stat().st_mtime_ns).mixers.items():
            if name in found:
                raise CardError(
                    f"two files claim the mixer {name!r}: {found[name].folder} and {file.parent}."
                )
            found[name] = _variant(name, entry, file.parent, origin)
    return list(found.values())


def find_mixer(name: str, known: Sequence[MixerVariant]) -> MixerVariant:
    """The mixer of a name, with `mixer:` before it or without.

    Raises:
        UnknownName: there is none; the message lists near misses.
    """
    wanted = name.removeprefix(MIXER).strip().lower().replace("_", "-")
    for variant in known:
        if variant.variant == wanted:
            return variant
    hint = "`longvis mixers --list` names them all."
    raise UnknownName("mixer", name.removeprefix(MIXER), [each.variant for each in known], hint)


def expand_mixers(name: str, known: Sequence[MixerVariant]) -> list[str]:
    """A pattern like `*window` as the names it matches, each with `mixer:`; another name as it is.

    Raises:
        UnknownName: the pattern matches none.
    """
    base, bracket, arguments = name.strip().removeprefix(MIXER).partition("[")
    if not any(sign in base for sign in "*?"):
        return [f"{find_mixer(base, known).name}{bracket}{arguments}"]
    found = [each.name for each in known if fnmatchcase(each.variant, base.lower())]
    if not found:
        hint = "the pattern matches no name; `longvis mixers --list` names them all."
        raise UnknownName("mixer", base, [], hint)
    return [f"{match}{bracket}{arguments}" for match in found]


def _variant(name: str, entry: MixerEntry, folder: Path, origin: str) -> MixerVariant:
    return MixerVariant(
        name=f"{MIXER}{name}",
        family=FAMILY,
        variant=name,
        implementation="native" if origin == BUILT_IN else "user",
        factory=entry.factory,
        folder=folder,
        origin=origin,
        arguments={**NETWORK, **entry.arguments},
        entry=entry,
    )


@lru_cache(maxsize=64)
def _read(file: Path, changed_ns: int) -> MixersFile:
    """Read and check a file; again only after a change.

    Raises:
        CardError: it is not TOML, or a field is unknown, missing or of the wrong kind.
    """
    try:
        content = file.read_text(encoding="utf-8-sig")
        if any(has_controls(line) for line in content.replace("\t", " ").splitlines()):
            raise CardError(f"the file {file} has control characters; remove them.")
        return MixersFile.model_validate(tomllib.loads(content))
    except OSError as error:
        raise CardError(f"cannot read {file}: {error.strerror or error}.") from error
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        said = "unknown field" if fault["type"] == "extra_forbidden" else fault["msg"]
        raise CardError(f"{file} does not follow the schema: {field}: {said}.") from error
    except (ValueError, RecursionError) as error:
        raise CardError(f"{file} is not valid TOML: {error}.") from error
