"""`longvis models`: what there is to measure, from the cards alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import ModelsDirs
from longvis_bench.errors import UnknownName
from longvis_bench.registry.card import Card, Published
from longvis_bench.registry.discovery import FoundCard
from longvis_bench.registry.registry import Registry


def models(
    name: Annotated[str | None, typer.Argument(help="A family or a variant to show in full.")] = None,
    models_dir: ModelsDirs = None,
) -> None:
    """List the models, or show one family in full."""
    registry = Registry(models_dir or ())
    console = Console(highlight=False)
    if name is None:
        console.print(_list(registry))
        for found in registry.cards:
            if found.card.licences.non_commercial:
                console.print(f"[bold]non-commercial[/] in part, {escape(_licences(found.card))}")
        console.print(
            "Also: timm:NAME (any timm model) and path/to/file.py:callable. One in full: longvis models NAME"
        )
        return
    _show(console, _card(registry, name))


def _card(registry: Registry, name: str) -> FoundCard:
    for found in registry.cards:
        if name == found.card.family or name.partition("@")[0] in found.card.variants:
            return found
    known = [found.card.family for found in registry.cards] + registry.names()
    raise UnknownName("model or family", name, known)


def _list(registry: Registry) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("family", "variants", "code", "weights that ship", "licence of the code"):
        table.add_column(header, overflow="fold")
    for found in registry.cards:
        card = found.card
        family = card.family + ("" if found.origin == "built-in" else f" ({found.origin})")
        names = [name.removeprefix(f"{card.family}-") for name in card.variants]
        names += [f"@{other}" for other in card.implementations]
        shipped = sorted({f"{entry.dataset} {entry.resolution} px" for entry in card.weights if entry.file})
        weights = ", ".join(shipped) or units.UNKNOWN
        row = (family, " ".join(names), card.implementation, weights, card.licences.code)
        table.add_row(*map(escape, row))
    return table


def _licences(card: Card) -> str:
    """Who allows what, in one line."""
    parts = {
        "code that runs": card.licences.code,
        "authors' code": card.licences.upstream,
        "authors' weights": card.licences.weights,
    }
    return f"{card.family}: " + "; ".join(f"{name} {licence}" for name, licence in parts.items() if licence)


def _show(console: Console, found: FoundCard) -> None:
    card = found.card
    console.print(f"[bold]{escape(card.family)}[/]  {escape(card.title)}")
    console.print(escape(card.summary))
    facts: dict[str, str | None] = {
        "paper": card.paper,
        "upstream": card.upstream and f"{card.upstream} @ {(card.commit or '')[:12]}",
        "code that runs": f"{card.implementation}, {card.licences.code}",
        "authors' code": card.licences.upstream,
        "authors' weights": card.licences.weights,
        "shipped weights": card.licences.trained,
        "found in": found.origin,
        "sizes": _sizes(card),
        **{way: f"does not work: {why}" for way, why in card.unsupported.items()},
    }
    for label, value in facts.items():
        if value:
            console.print(f"  {label:17}{escape(value)}")
    if card.licences.non_commercial:
        console.print(
            "  [bold]non-commercial[/]   some of this may not be used commercially; see the licences"
        )
    for note in card.notes:
        console.print(f"  - {escape(note)}")
    console.print(_variants(card))
    if card.weights:
        console.print(_weights(card))
    if card.published:
        console.print(_published(card))


def _sizes(card: Card) -> str:
    rule = card.resolution
    if rule.note:
        return rule.note
    most = f" up to {rule.maximum} px" if rule.maximum else ""
    return f"multiples of {rule.multiple_of} px from {max(rule.minimum, rule.multiple_of)} px{most}"


def _variants(card: Card) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Variants", title_justify="left")
    for header in ("name", "what", "arguments"):
        table.add_column(header, overflow="fold")
    for name, entry in card.variants.items():
        arguments = " ".join(f"{key}={value}" for key, value in entry.arguments.items())
        table.add_row(*map(escape, (name, entry.summary, arguments)))
    return table


def _weights(card: Card) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Weights", title_justify="left")
    for header in ("variant", "data", "px", "file", "top-1"):
        table.add_column(header, overflow="fold")
    for entry in card.weights:
        where = entry.file or entry.url or ""
        top1 = units.percent(entry.top1)
        table.add_row(*map(escape, (entry.variant, entry.dataset, str(entry.resolution), where, top1)))
    return table


def _published(card: Card) -> Table:
    title = "Published by the authors and others (MACs are multiply-adds, whatever the source calls them)"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for header in ("variant", "px", "params M", "GMACs", "top-1 %", "img/s", "on", "source"):
        table.add_column(header, overflow="fold")
    for entry in card.published:
        table.add_row(*map(escape, _published_row(entry)))
    return table


def _published_row(entry: Published) -> tuple[str, ...]:
    numbers = (entry.resolution, entry.params_m, entry.macs_g, entry.top1_percent, entry.throughput_img_s)
    shown = tuple(units.plain(number) for number in numbers)
    return (entry.variant, *shown, units.plain(entry.hardware), f"{entry.source}, {entry.table}")
