"""Where cards are looked for: in this package, in plug-ins, in the user's folders, in the working directory.

What the cards declare is read by `card.py` and found by name in `registry.py`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from longvis_bench.errors import CardError
from longvis_bench.files import PACKAGE
from longvis_bench.registry.card import CARD_FILE, Card, read_card

ENTRY_POINTS = "longvis_bench.models"
BUILT_IN = "built-in"


@dataclass(frozen=True)
class FoundCard:
    """A card and where it was found."""

    card: Card
    folder: Path
    origin: str


def built_in_folder() -> Path:
    """The folder of this package's own cards: inside the wheel, or beside our own pyproject.toml.

    An editable install leaves a stale `_models` copy elsewhere on the path, and a working directory may hold
    a foreign `models` folder; neither is ever looked at here.
    """
    packaged = PACKAGE / "_models"
    if packaged.is_dir():
        return packaged
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and 'name = "longvis-bench"' in project.read_text(encoding="utf-8"):
        return PACKAGE.parent / "models"
    raise CardError("the cards of the built-in models are missing from this installation; install it again.")


def built_in_cards() -> Iterator[FoundCard]:
    """The cards of this package alone."""
    for folder in _subfolders(built_in_folder()):
        yield FoundCard(_card_in(folder.resolve()), folder.resolve(), BUILT_IN)


def required_packages() -> list[str]:
    """Packages that the built-in cards require, other implementations included; sorted, each once."""
    cards = [found.card for found in built_in_cards()]
    needs = [need for card in cards for need in card.requires]
    needs += [need for card in cards for other in card.implementations.values() for need in other.requires]
    return sorted({need.package for need in needs})


def find_cards(models_dirs: Sequence[Path], working_dir: Path) -> Iterator[FoundCard]:
    """All cards in reach, each folder once; see `Registry`.

    Raises:
        CardError: a card, or a folder where cards should be, cannot be read.
    """
    seen: set[Path] = set()
    for folder, origin in _card_folders(models_dirs, working_dir):
        real = folder.resolve()
        if real not in seen:
            seen.add(real)
            yield FoundCard(_card_in(real), real, origin)


def _card_in(folder: Path) -> Card:
    """A folder's card, read again only where the file has changed."""
    file = folder / CARD_FILE
    try:
        stat = file.stat()
    except OSError:
        return read_card(file)
    return _read_once(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read_once(file: Path, changed_ns: int, size: int) -> Card:
    return read_card(file)


def _card_folders(models_dirs: Sequence[Path], working_dir: Path) -> Iterator[tuple[Path, str]]:
    yield from ((folder, BUILT_IN) for folder in _subfolders(built_in_folder()))
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        yield plug_in_folder(point), f"plug-in {point.name}"
    for directory in models_dirs:
        if not directory.is_dir():
            raise CardError(f"--models-dir {directory} is not a folder.")
        yield from ((folder, str(directory)) for folder in _subfolders(directory))
    local = working_dir / "models"
    if local.is_dir():
        yield from ((folder, "./models") for folder in _subfolders(local))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{CARD_FILE}"))


def plug_in_folder(point: importlib.metadata.EntryPoint) -> Path:
    """The folder of the package an entry point names; found without importing the package itself."""
    top, *inner = point.value.split(".")
    spec = importlib.util.find_spec(top)  # of a whole dotted name, it would import the packages above
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (folder := Path(location, *inner)).is_dir():
            return folder
    raise CardError(f"the plug-in {point.name} names {point.value}, which is not an installed package.")
