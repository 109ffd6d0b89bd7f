"""Models by name: cards from four sources, variants built on demand.

Cards come from the package itself, from installed plug-ins (entry-point group `longvis_bench.models`), from
`--models-dir` and from `./models` of the working directory.  Finding a model reads cards only; the registry
imports a model's code when it builds the model, so listing is fast, and code beside a card does not run until
the user names its model.

The forms of a name are `variant`, `variant@implementation`, `variant[key=value,...]`, `timm:NAME`,
`mixer:NAME` and `path/to/file.py:callable`; `names.py` has the rules for spelling and patterns.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvis_bench.errors import (
    CardError,
    IllegalSize,
    LongvisError,
    MissingDependency,
    UnknownName,
)
from longvis_bench.registry.card import (
    Card,
    Dependency,
    Implementation,
    ImplementationEntry,
    WeightsEntry,
)
from longvis_bench.registry.discovery import BUILT_IN, FoundCard, built_in_cards, find_cards
from longvis_bench.registry.factory_source import NO_FACTORY, check_source, declares_a_pair
from longvis_bench.registry.global_state import preserved
from longvis_bench.registry.legal import legal_near, require_rule, require_same
from longvis_bench.registry.names import expand, respelled, split_names, unknown_model
from longvis_bench.resolution import AnyResolution, Rectangle, Resolution, resolution_of, sides
from longvis_bench.sizes.plan import SizePlan
from longvis_bench.sizes.timm import named as timm_plan

if TYPE_CHECKING:
    from torch import nn

    from longvis_bench.registry.mixers import MixerVariant

MIXER = "mixer:"
"""What the name of a model around a token mixer begins with."""
PACKAGE_NAME = __name__.partition(".")[0]
_NAME = re.compile(r"^(?P<base>[^\[\]]+?)(?:\[(?P<arguments>.*)\])?$")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model that can be built at many resolutions."""

    name: str
    """Name without arguments, e.g. "atlas-s" or "mambavision-s@upstream"."""
    family: str
    variant: str
    implementation: Implementation
    factory: str
    folder: Path
    """Folder that relative names of factory and weight files refer to."""
    origin: str
    """Source of the card, for messages and listings."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The card's arguments, overridden by the user's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Arguments that the user gave in brackets."""
    requires: tuple[Dependency, ...] = ()
    card: Card | None = None
    """None for ad hoc models (`timm:NAME`, `file.py:callable`)."""

    @property
    def full_name(self) -> str:
        """The name that `Registry.find` resolves to this variant, with the user's arguments in brackets."""
        inside = ",".join(f"{key}={value!r}" for key, value in sorted(self.overrides.items()))
        return f"{self.name}[{inside}]" if inside else self.name

    @property
    def rectangles(self) -> str | None:
        """Which rectangles it takes besides squares, in words; None: none."""
        if self.card is not None:
            others: Mapping[str, ImplementationEntry] = {
                str(k): v for k, v in self.card.implementations.items()
            }
            other = others.get(self.implementation)
            return self.card.resolution.rectangles if other is None or other.rectangles else None
        if self.origin == "timm":
            return "where timm's model takes them"
        source = self.source_file()
        return "any" if source and declares_a_pair(source, self.factory.rpartition(":")[2]) else None

    def plan(self, resolution: AnyResolution) -> SizePlan:
        """The adaptation of the model to a resolution: pixels per side, or (height, width).

        Raises:
            IllegalSize: the model cannot take the resolution; the message lists legal ones near it.
            IllegalArgument: the arguments do not fit together.
            CardError: the card's plan function failed or returned another type.
        """
        resolution = resolution_of(resolution)
        self._require_shape(resolution)
        if self.card is None and self.origin == "timm":
            return timm_plan(self.variant, resolution, self.arguments)
        if self.card is None:
            return SizePlan(reach="built for the size")
        rule = self.card.resolution
        if rule.plan is not None:
            return self._call_plan(rule.plan, resolution)
        require_rule(resolution, self)
        return SizePlan(reach="built for the size")

    def _require_shape(self, resolution: Resolution) -> None:
        """Raise for a rectangle that the adapter does not take, and for another size in brackets."""
        own = self.overrides.get("img_size")
        if own is not None and self.factory.startswith(f"{PACKAGE_NAME}."):
            require_same(own, resolution, self)
        if isinstance(resolution, Rectangle) and self.rectangles is None:
            squares = sorted({size for side in resolution for size in legal_near(self, side)})
            raise IllegalSize(resolution, f"{self.name} takes squares only", squares)

    def _given(self, resolution: Resolution) -> Resolution | tuple[int, int]:
        """The resolution as factory and plan function take it."""
        return resolution if self.rectangles is None else sides(resolution)

    def _call_plan(self, reference: str, resolution: Resolution) -> SizePlan:
        foreign = self.origin != BUILT_IN
        try:
            with preserved() if foreign else nullcontext():
                plan = _load(reference, self.folder)(self._given(resolution), **self.arguments)
        except LongvisError:
            raise
        except Exception as error:
            raise CardError(f"{self.full_name} cannot be planned with these arguments: {error}.") from error
        if not isinstance(plan, SizePlan):
            raise CardError(f"{reference} of {self.name} returned no SizePlan.")
        return plan

    def check_factory(self) -> None:
        """Check without executing code that the factory exists and takes the user's arguments.

        Raises:
            CardError: the factory does not exist.
            UnknownName: the factory lacks an argument, or timm has no such model.
        """
        if self.origin == "timm":
            from longvis_bench.backbones.timm import require_known

            require_known(self.variant)
            return
        source = self.source_file()
        if source is not None:
            check_source(source, self)

    def source_files(self) -> list[Path]:
        """The source files of the model, as far as `source_file` knows them."""
        source = self.source_file()
        return [] if source is None else [source]

    def source_file(self) -> Path | None:
        """The source file of the factory; None if it has none.

        Raises:
            CardError: the factory's module cannot be found.
        """
        target = self.factory.rpartition(":")[0]
        if target.endswith(".py"):
            return self.folder / target
        try:
            spec = importlib.util.find_spec(target)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            raise CardError(f"the factory's module {target} cannot be found.")
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None

    def build(self, *, resolution: AnyResolution, num_classes: int, in_chans: int = 3) -> nn.Module:
        """Build the model on the current default device, with random initial weights.

        Global settings that the factory changes (threads, default dtype, working directory, ...) are
        restored, except the states of random number generators.

        Returns:
            A module from (batch, in_chans, height, width) to logits (batch, num_classes).

        Raises:
            MissingDependency: a package that the model needs is not installed.
            IllegalSize: the model cannot take the resolution.
            IllegalArgument: the arguments do not fit together.
            CardError: the factory does not exist, does not take the arguments, or returns no module.
        """
        from torch import nn

        self.require_packages()
        given = self._given(resolution_of(resolution))
        arguments = {**self.arguments, **self.plan(resolution).arguments}
        factory = self.load_factory()
        _check_call(factory, self, arguments)
        with preserved():
            model = factory(resolution=given, num_classes=num_classes, in_chans=in_chans, **arguments)
        if not isinstance(model, nn.Module):
            kind = _kind_of(model)
            raise CardError(
                f"the factory {self.factory} of {self.name} returned {kind}, not a torch.nn.Module."
            )
        return model

    def load_factory(self) -> Callable[..., Any]:
        """Import the model's factory; Python caches the module.

        Raises:
            MissingDependency: a package that the factory's module imports is not installed.
            CardError: the factory does not exist, or the name refers to a model instead of a factory.
        """
        with preserved():
            factory = _load(self.factory, self.folder)
        _require_factory(factory, self)
        return factory

    def require_packages(self) -> None:
        """Raise MissingDependency for the first package that is not installed."""
        for need in self.requires:
            if importlib.util.find_spec(need.module) is None:
                raise MissingDependency(need.module, self.name, need.install)

    def shipped_weights(self, dataset: str, resolution: Resolution) -> WeightsEntry | None:
        """The weight file that ships for this dataset and resolution, if any."""
        if self.card is None or self.overrides:
            return None
        for entry in self.card.weights:
            wanted = (self.variant, dataset, resolution)
            if entry.file and (entry.variant, entry.dataset, entry.resolution) == wanted:
                return entry
        return None


def _require_factory(found: object, variant: Variant) -> None:
    """Raise CardError for a model in place of a factory: a model is callable, but not with a resolution."""
    from torch import nn

    if isinstance(found, nn.Module):
        raise CardError(
            f"{variant.factory} is a model ({type(found).__name__}), not a factory; write a function that "
            "takes resolution, num_classes and in_chans and returns the model, and name that."
        )


def _kind_of(found: object) -> str:
    """Description of a factory's return value, for messages."""
    if found is None:
        return "None (is its return statement missing?)"
    if isinstance(found, type):
        return f"the class {found.__name__} itself"
    return type(found).__name__


def _check_call(factory: Callable[..., Any], variant: Variant, arguments: dict[str, Any]) -> None:
    """Raise CardError if the factory does not take the arguments, instead of a TypeError from the call."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(resolution=0, num_classes=0, in_chans=0, **arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        message = (
            f"the factory {variant.factory} of {variant.name} cannot be called: {error}; it takes {takes}."
        )
        raise CardError(message) from error


def _load(reference: str, folder: Path) -> Callable[..., Any]:
    """The callable that `module:name` or `file.py:name` refers to."""
    target, _, attribute = reference.rpartition(":")
    module = _load_file(folder / target) if target.endswith(".py") else _load_module(target)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise CardError(f"{target} has no callable named {attribute!r}.") from None
    if not callable(found):
        kind = "module" if inspect.ismodule(found) else type(found).__name__
        raise CardError(NO_FACTORY.format(name=reference, kind=kind))
    return found  # type: ignore[no-any-return]


def _load_module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise CardError(f"the factory's module {name} cannot be found.") from error
        raise MissingDependency(error.name or name, name, f"python -m pip install {error.name}") from error


def _load_file(path: Path) -> object:
    name = "longvis_user_" + re.sub(r"\W", "_", str(path.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CardError(f"the factory's file {path} does not exist.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class Registry:
    """All cards from all sources, and the variants they declare.

    Arguments:
        models_dirs: the user's folders, each with cards in `<family>/card.toml`.
        working_dir: directory whose `models/` folder is searched, too; None for the current directory.
    """

    def __init__(self, models_dirs: Sequence[Path] = (), working_dir: Path | None = None) -> None:
        self.models_dirs = tuple(models_dirs)
        self.working_dir = working_dir or Path.cwd()
        self._cards: dict[str, FoundCard] = {}
        self._variants: dict[str, FoundCard] = {}
        for found in find_cards(self.models_dirs, self.working_dir):
            self._add(found)

    @property
    def cards(self) -> list[FoundCard]:
        """Every card, sorted by family name."""
        return [self._cards[family] for family in sorted(self._cards)]

    def _add(self, found: FoundCard) -> None:
        family = found.card.family
        known = self._cards.get(family)
        if known is not None:
            if known.card == found.card:
                return
            raise CardError(
                f"two different cards claim the family {family!r}: {known.folder} and {found.folder}."
            )
        for name in found.card.variants:
            if name in self._variants:
                other = self._variants[name].folder
                raise CardError(f"two cards claim the variant {name!r}: {other} and {found.folder}.")
        self._cards[family] = found
        self._variants.update(dict.fromkeys(found.card.variants, found))

    def variants(self) -> list[str]:
        """Names of all variants, without alternative implementations."""
        return sorted(self._variants)

    def names(self) -> list[str]:
        """Names of all variants, with alternative implementations."""
        names = list(self._variants)
        for name, found in self._variants.items():
            names += [f"{name}@{other}" for other in found.card.implementations]
        return sorted(names)

    def expand(self, names: Iterable[str]) -> list[str]:
        """Replace patterns by the names they match; see `names.expand`."""
        return expand([found for name in names for found in self._mixers_like(name)], self.variants())

    def mixers(self) -> list[MixerVariant]:
        """All token mixers; see `registry/mixers.py`."""
        from longvis_bench.registry.mixers import find_mixers

        return find_mixers(self.models_dirs, self.working_dir)

    def _mixers_like(self, name: str) -> list[str]:
        if not name.strip().startswith(MIXER):
            return [name]
        from longvis_bench.registry.mixers import expand_mixers

        return expand_mixers(name, self.mixers())

    def find(self, name: str) -> Variant:
        """The variant that a user's name refers to.

        Raises:
            UnknownName: there is no such model; the message lists near misses.
        """
        match = _NAME.match(name.strip())
        if match is None:
            raise UnknownName("model", name, self.names())
        overrides = _parse_arguments(name, match["arguments"] or "")
        variant = self._find_base(match["base"].strip())
        return replace(variant, arguments={**variant.arguments, **overrides}, overrides=overrides)

    def _find_base(self, base: str) -> Variant:
        if base.startswith("timm:"):
            return _timm_variant(base)
        if base.startswith(MIXER):
            from longvis_bench.registry.mixers import find_mixer

            return find_mixer(base, self.mixers())
        if ".py:" in base:
            return _file_variant(base, self.working_dir)
        name, _, implementation = base.partition("@")
        known = name if name in self._variants else respelled(name, self._variants)
        if known is None:
            raise unknown_model(base, self.names())
        return _card_variant(self._variants[known], known, implementation)


def _card_variant(found: FoundCard, name: str, implementation: str) -> Variant:
    card = found.card
    factory, requires, chosen = card.factory, card.requires, card.implementation
    if implementation and implementation != card.implementation:
        others = {str(key): entry for key, entry in card.implementations.items()}
        if implementation not in others:
            raise UnknownName(f"implementation of {name}", implementation, [card.implementation, *others])
        entry = others[implementation]
        factory, requires = entry.factory, entry.requires
        chosen = implementation  # type: ignore[assignment]
    return Variant(
        name=name if chosen == card.implementation else f"{name}@{chosen}",
        family=card.family,
        variant=name,
        implementation=chosen,
        factory=factory,
        folder=found.folder,
        origin=found.origin,
        arguments=dict(card.variants[name].arguments),
        requires=requires,
        card=card,
    )


def _timm_variant(base: str) -> Variant:
    return Variant(
        name=base,
        family="timm",
        variant=base.removeprefix("timm:"),
        implementation="timm",
        factory="longvis_bench.backbones.timm:build_any",
        folder=Path(),
        origin="timm",
        arguments={"name": base.removeprefix("timm:")},
    )


def _file_variant(base: str, working_dir: Path) -> Variant:
    path, _, attribute = base.rpartition(":")
    file = (working_dir / path).resolve()
    if not file.is_file():
        raise UnknownName("model file", path, [], "the file does not exist.")
    return Variant(
        name=base,
        family="user",
        variant=f"{file.stem}:{attribute}",
        implementation="user",
        factory=f"{file.name}:{attribute}",
        folder=file.parent,
        origin=path,
    )


def _parse_arguments(name: str, text: str) -> dict[str, Any]:
    """`window_order=official,window=8` -> a dict; values are Python literals, else plain strings."""
    arguments: dict[str, Any] = {}
    for part in split_names(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UnknownName("model", name, [], "arguments read model[key=value,key=value].")
        try:
            arguments[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[key.strip()] = value.strip()
    return arguments


def preload() -> None:
    """Read the built-in cards and import their factories' modules once, before this process forks.

    Errors of a card and missing packages are ignored here: the cell that needs them reports them.
    """
    with suppress(LongvisError):
        for found in built_in_cards():
            with suppress(LongvisError, ImportError):
                _load(found.card.factory, found.folder)
