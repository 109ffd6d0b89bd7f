"""Published tables as presets of a sweep: the models, sizes and modes that a table of a paper has.

A preset is named after the family whose paper has the table, and the table: "atlas-table1".  It holds what
the registered cards state of that table; models without a card are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from longvis_bench.errors import UnknownName
from longvis_bench.records import Mode
from longvis_bench.registry.card import Published
from longvis_bench.registry.registry import Registry


@dataclass(frozen=True)
class Preset:
    """The cells of a published table."""

    name: str
    entries: tuple[Published, ...]
    """Those of the cards that have a size."""

    @property
    def cells(self) -> frozenset[tuple[str, int]]:
        """Model and resolution in pixels."""
        return frozenset((entry.model, entry.resolution) for entry in self.entries if entry.resolution)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order of the cards."""
        return tuple(dict.fromkeys(entry.model for entry in self.entries))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels per side, smallest first."""
        return tuple(sorted({size for _, size in self.cells}))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Training where the table has runtimes, inference where it has throughputs or neither."""
        trains = any(entry.runtime_h is not None for entry in self.entries)
        infers = any(entry.throughput_img_s is not None for entry in self.entries)
        return (*(("infer",) if infers or not trains else ()), *(("train",) if trains else ()))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that the table states; empty if it states none."""
        return tuple(sorted({entry.batch for entry in self.entries if entry.batch is not None}))

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"{self.entries[0].source}, {self.entries[0].table}"


def presets(registry: Registry) -> dict[str, Preset]:
    """All presets by name."""
    tables: dict[str, list[Published]] = {}
    for family, paper in _papers(registry):
        for found in registry.cards:
            for entry in found.card.published:
                number = re.fullmatch(r"Table (\d+)", entry.table)
                if number and entry.resolution and _is_of(entry.source, paper):
                    tables.setdefault(f"{family}-table{number[1]}", []).append(entry)
    return {name: Preset(name, tuple(entries)) for name, entries in sorted(tables.items())}


def find_preset(registry: Registry, name: str) -> Preset:
    """A preset by its name.

    Raises:
        UnknownName: no table has this name; the message lists near misses.
    """
    known = presets(registry)
    if name not in known:
        raise UnknownName("preset", name, known)
    return known[name]


def _papers(registry: Registry) -> Iterator[tuple[str, str]]:
    """Family and paper of each card; of several families of one paper, the first."""
    seen: set[str] = set()
    for found in registry.cards:
        paper = found.card.paper
        if paper is not None and paper not in seen:
            seen.add(paper)
            yield found.card.family, paper


def _is_of(source: str, paper: str) -> bool:
    """Whether a source is a paper, of whatever version (`arXiv:2407.08083v2`)."""
    return re.fullmatch(rf"{re.escape(paper)}(v\d+)?", source) is not None
