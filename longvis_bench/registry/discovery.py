"""Search for cards: in this package, in plug-ins, in the user's folders, and in the working directory.

`card.py` reads a card, and `registry.py` finds a model by its name.
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
    """A card and its location."""

    card: Card
    folder: Path
    origin: str
    """Source of the card, for messages and listings."""


def built_in_folder() -> Path:
    """The folder of this package's cards: inside the wheel, or beside the project's pyproject.toml.

    Neither a stale `_models` copy that an editable install leaves elsewhere on the path nor a `models` folder
    of the working directory is used.
    """
    packaged = PACKAGE / "_models"
    if packaged.is_dir():
        return packaged
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and 'name = "longvis-bench"' in project.read_text(encoding="utf-8"):
        return PACKAGE.parent / "models"
    raise CardError("the cards of the built-in models are missing from this installation; install it again.")


def built_in_cards() -> Iterator[FoundCard]:
    """The cards of this package only."""
    for folder in _subfolders(built_in_folder()):
        yield FoundCard(_card_in(folder.resolve()), folder.resolve(), BUILT_IN)


def required_packages() -> list[str]:
    """Packages that the built-in cards require, including their alternative implementations, sorted."""
    cards = [found.card for found in built_in_cards()]
    needs = [need for card in cards for need in card.requires]
    needs += [need for card in cards for other in card.implementations.values() for need in other.requires]
    return sorted({need.package for need in needs})


def find_cards(models_dirs: Sequence[Path], working_dir: Path) -> Iterator[FoundCard]:
    """All cards of all sources, each folder once; see `Registry`.

    Raises:
        CardError: a card, or a folder of cards, cannot be read.
    """
    seen: set[Path] = set()
    for folder, origin in _card_folders(models_dirs, working_dir):
        real = folder.resolve()
        if real not in seen:
            seen.add(real)
            yield FoundCard(_card_in(real), real, origin)


def _card_in(folder: Path) -> Card:
    """A folder's card; the file is parsed again only after a change."""
    file = folder / CARD_FILE
    try:
        stat = file.stat()
    except OSError:
        return read_card(file)
    return _read_once(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read_once(file: Path, changed_ns: int, size: int) -> Card:
    return read_card(file)


def find_files(name: str, models_dirs: Sequence[Path], working_dir: Path) -> Iterator[tuple[Path, str]]:
    """Files of a name in the folders of cards, each once, and the source of each; see `Registry`.

    Raises:
        CardError: a folder of cards cannot be read.
    """
    seen: set[Path] = set()
    for folder, origin in _card_folders(models_dirs, working_dir, name):
        file = folder.resolve() / name
        if file not in seen and file.is_file():
            seen.add(file)
            yield file, origin


def _card_folders(
    models_dirs: Sequence[Path], working_dir: Path, name: str = CARD_FILE
) -> Iterator[tuple[Path, str]]:
    yield from ((folder, BUILT_IN) for folder in _subfolders(built_in_folder(), name))
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        yield plug_in_folder(point), f"plug-in {point.name}"
    for directory in models_dirs:
        if not directory.is_dir():
            raise CardError(f"--models-dir {directory} is not a folder.")
        yield from ((folder, str(directory)) for folder in _subfolders(directory, name))
    local = working_dir / "models"
    if local.is_dir():
        yield from ((folder, "./models") for folder in _subfolders(local, name))


def _subfolders(folder: Path, name: str = CARD_FILE) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{name}"))


def plug_in_folder(point: importlib.metadata.EntryPoint) -> Path:
    """The folder of the package that an entry point names, found without importing the package."""
    top, *inner = point.value.split(".")
    spec = importlib.util.find_spec(top)  # find_spec of a dotted name would import its parent packages
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (folder := Path(location, *inner)).is_dir():
            return folder
    raise CardError(f"the plug-in {point.name} names {point.value}, which is not an installed package.")
