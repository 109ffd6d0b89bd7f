"""Tables of token mixers: a table per number of tokens, mode and condition, beside the published ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.records import Row
from longvis_bench.registry.mixers import MixerVariant, PublishedMixer
from longvis_bench.report.grouping import number
from longvis_bench.report.plain_table import plain_table
from longvis_bench.sizes.mixers import NETWORK

REFERENCE_RATIO = 1.0
"""Of the mixer that a published table divides by."""


@dataclass(frozen=True)
class MixerRow:
    """A row, and what is known of its mixer."""

    row: Row
    variant: MixerVariant

    @property
    def label(self) -> str:
        """The mixer's name, with its arguments that are not the declared ones."""
        declared = self.variant.entry.arguments
        own = {
            key: value
            for key, value in sorted(self.row.cell.arguments.items())
            if key not in NETWORK and declared.get(key) != value
        }
        inside = ",".join(f"{key}={value!r}" for key, value in own.items())
        return f"{self.variant.variant}[{inside}]" if inside else self.variant.variant

    @property
    def side(self) -> int:
        """Tokens per side."""
        return self.row.cell.height // int(self.row.cell.arguments["patch"])

    @property
    def latency_s(self) -> float | None:
        """Median seconds per iteration; None unless the row is ok."""
        return number(self.row, "latency_median_s")

    @property
    def memory_bytes(self) -> float | None:
        """Peak memory; None unless the row is ok."""
        return number(self.row, "peak_memory_bytes")

    @property
    def mixer_macs(self) -> float | None:
        """MACs per image of one block's mixer."""
        cell, found = self.row.cell, number(self.row, "macs")
        if found is None:
            return None
        model = replace(self.variant, arguments=dict(cell.arguments))
        return model.mixer_macs(int(found), cell.resolution, cell.num_classes)

    @property
    def published(self) -> PublishedMixer | None:
        """What a paper prints for these tokens and this network, in training; None otherwise."""
        cell, arguments = self.row.cell, self.row.cell.arguments
        for entry in self.variant.entry.published:
            shape = (entry.tokens, entry.dim, entry.heads, entry.blocks, NETWORK["mlp_ratio"])
            own = (self.side**2, *(arguments[key] for key in ("dim", "heads", "blocks", "mlp_ratio")))
            if cell.mode == "train" and own == shape:
                return entry
        return None

    @property
    def is_reference(self) -> bool:
        """Whether a published table divides by this mixer."""
        return any(entry.ratio == REFERENCE_RATIO for entry in self.variant.entry.published)


def mixer_rows(rows: Sequence[Row], known: Sequence[MixerVariant]) -> list[MixerRow]:
    """The rows whose mixer is known."""
    by_name = {variant.variant: variant for variant in known}
    return [MixerRow(row, by_name[row.cell.variant]) for row in rows if row.cell.variant in by_name]


def by_condition(rows: Sequence[MixerRow]) -> dict[str, list[MixerRow]]:
    """Title -> rows of one number of tokens, mode, batch, dtype and network, the fastest first."""
    found: dict[str, list[MixerRow]] = {}
    for each in sorted(rows, key=lambda each: (each.side, each.row.cell.mode)):
        found.setdefault(_title(each), []).append(each)
    return {title: sorted(group, key=_place) for title, group in found.items()}


def mixer_table(rows: Sequence[MixerRow]) -> Table:
    """The table of one condition; columns that no row has a value for are left out."""
    reference = next((each for each in rows if each.is_reference and each.latency_s), None)
    base = reference.latency_s if reference is not None else None
    name = reference.label if reference is not None else ""
    columns: dict[str, list[str | None]] = {
        "latency": [_latency(each) for each in rows],
        f"x {name}": [_ratio(each.latency_s, base) for each in rows],
        "paper": [f"{each.published.ratio:.2f}" if each.published else None for each in rows],
        "memory": [_known(units.size, each.memory_bytes) for each in rows],
        "MACs": [_known(units.count, number(each.row, "macs")) for each in rows],
        "per mixer": [_known(units.count, each.mixer_macs) for each in rows],
        "can see": [_known(units.percent, number(each.row, "reach_share")) for each in rows],
    }
    shown = {heading: texts for heading, texts in columns.items() if any(texts)}
    table = plain_table(["mixer"], list(shown))
    for place, each in enumerate(rows):
        table.add_row(escape(each.label), *(texts[place] or units.UNKNOWN for texts in shown.values()))
    return table


def remarks(rows: Sequence[MixerRow]) -> list[str]:
    """Sentences below the tables: what signs mean, what the published ratios are, and why rows failed."""
    said = []
    if any(_is_doubtful(each) for each in rows):
        said.append("~ The latency is not as precise as asked for; the run's summary.md says why.")
    published = {each.variant.variant: each.published for each in rows if each.published}
    if published:
        said.append(_on_published(published))
    failed = [each for each in rows if each.row.status != "ok"]
    said += [f"{each.label}, {_title(each)}: {each.row.reason or each.row.status}" for each in failed]
    return said


def _on_published(published: Mapping[str, PublishedMixer]) -> str:
    one = next(iter(published.values()))
    return (
        f"paper: runtime of a training over that of {_reference(published)}, {one.source}, {one.table}. Only "
        "ratios can be compared: its hardware and data loading are not stated, nor how its blocks divide the "
        "scales; here a step on a batch in memory is timed."
    )


def _reference(published: Mapping[str, PublishedMixer]) -> str:
    return next((name for name, one in published.items() if one.ratio == REFERENCE_RATIO), "its reference")


def _title(each: MixerRow) -> str:
    """`9,216 tokens (96 x 96) x 768, 12 heads, 4 blocks, MLP ratio 4: train, batch 1, fp32, cpu`."""
    cell, a = each.row.cell, each.row.cell.arguments
    mlp = f"MLP ratio {a['mlp_ratio']:g}" if a["mlp_ratio"] else "no MLP"
    width = f"{a['dim']}, {units.several(a['heads'], 'head')}, {units.several(a['blocks'], 'block')}, {mlp}"
    grid = f"{each.side**2:,} tokens ({each.side} x {each.side})"
    return f"{grid} x {width}: {cell.mode}, batch {cell.batch_size}, {cell.dtype}, {cell.device}"


def _place(each: MixerRow) -> tuple[float, float, str]:
    """The fastest first; without a latency, those of fewer MACs."""
    macs = number(each.row, "macs")
    return each.latency_s or inf, inf if macs is None else macs, each.label


def _is_doubtful(each: MixerRow) -> bool:
    timing = each.row.timing
    return each.latency_s is not None and timing is not None and timing.verdict != "stable"


def _latency(each: MixerRow) -> str | None:
    if each.row.status != "ok":
        return each.row.status.replace("_", " ")
    if each.latency_s is None:
        return None
    return ("~" if _is_doubtful(each) else "") + units.seconds(each.latency_s)


def _ratio(value: float | None, base: float | None) -> str | None:
    return None if value is None or base is None else f"{value / base:.2f}"


def _known(write: Callable[[float], str], value: float | None) -> str | None:
    return None if value is None else write(value)
