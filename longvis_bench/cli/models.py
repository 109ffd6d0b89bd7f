"""`longvis models`: list the models, from their cards alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import OUTPUT, ModelsDirs, complete_families
from longvis_bench.errors import LongvisError, UnknownName
from longvis_bench.registry.card import COUNTED_AT, Card, Published
from longvis_bench.registry.discovery import BUILT_IN, FoundCard
from longvis_bench.registry.names import respelled
from longvis_bench.registry.registry import Registry, Variant

NON_COMMERCIAL = "*"
WIDE = 100
"""Terminals with at least this many columns show all columns of the table."""
STEPS = (1, 2, 4, 8, 14, 16, 28, 32, 56, 64, 112, 128, 224, 256)
"""Multiples that are tried to describe a model's legal sizes, in pixels."""
SHOWN_SIZES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Sizes that are tried if no multiple describes the legal sizes."""


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A family or variant to show in detail.",
            show_default=False,
            autocompletion=complete_families,
        ),
    ] = None,
    models_dir: ModelsDirs = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print JSON: one object per variant, or the card.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_bibtex: Annotated[
        bool,
        typer.Option(
            "--bibtex", help="Print the BibTeX entry of the family's paper.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """List the models with their size and cost, or show one family in detail."""
    registry = Registry(models_dir or ())
    console = Console(highlight=False)
    if as_bibtex:
        typer.echo(_entry(registry, name, as_json=as_json))
    elif name is not None and as_json:
        typer.echo(json.dumps(_content(registry, _card(registry, name)), indent=2))
    elif name is not None:
        _show(console, registry, _card(registry, name))
    elif as_json:
        for entry in _entries(registry):
            typer.echo(json.dumps(entry))
    else:
        _show_all(console, registry)


def _entry(registry: Registry, name: str | None, *, as_json: bool) -> str:
    """The BibTeX entry of a family.

    Raises:
        LongvisError: no family is named, `--json` is given as well, or the card has no paper.
        UnknownName: no family or variant has this name.
    """
    if name is None or as_json:
        raise LongvisError(
            "--bibtex prints the entry of one family: give its name, like longvis models swin --bibtex."
        )
    card = _card(registry, name).card
    entry = bibtex(card)
    if entry is None:
        raise LongvisError(f"the card of {card.family} names no paper with its authors and arXiv number.")
    return entry


def _show_all(console: Console, registry: Registry) -> None:
    console.print(_list(registry, wide=console.width >= WIDE))
    console.print(
        f"MACs per image at {COUNTED_AT.resolution} px, {COUNTED_AT.classes} classes; growth of the cost "
        "with the number of tokens n, as published."
    )
    for found in registry.cards:
        if found.card.licences.non_commercial:
            console.print(f"{NON_COMMERCIAL} non-commercial in part: {escape(_licences(found.card))}")
    console.print(
        "Also: timm:NAME (any timm model) and path/to/file.py:callable. Details: longvis models NAME"
    )


def _card(registry: Registry, name: str) -> FoundCard:
    variants = registry.variants()
    wanted = respelled(name.partition("@")[0], variants) or name
    for found in registry.cards:
        if name.lower() == found.card.family or wanted in found.card.variants:
            return found
    known = [found.card.family for found in registry.cards] + registry.names()
    raise UnknownName("model or family", name, known)


def _entries(registry: Registry) -> Iterator[dict[str, Any]]:
    """Facts of each variant, sorted by family and size."""
    for found in registry.cards:
        card = found.card
        for name in sorted(card.variants, key=lambda name: card.variants[name].params or 0):
            yield {
                "model": name,
                "family": card.family,
                "implementation": card.implementation,
                "params": card.variants[name].params,
                "macs": card.variants[name].macs,
                "macs_resolution": COUNTED_AT.resolution,
                "growth": card.growth,
                "sizes": legal_sizes(registry.find(name)),
                "licence": card.licences.code,
                "non_commercial": card.licences.non_commercial,
                "origin": found.origin,
            }


def _list(registry: Registry, wide: bool) -> Table:
    """One line per variant; a wide terminal also shows the implementation and its licence."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in (
        "model",
        "params",
        "MACs",
        "growth",
        "sizes in px",
        *(("code", "licence") if wide else ()),
    ):
        right = "right" if header in ("params", "MACs") else "left"
        table.add_column(header, justify=right, no_wrap=header != "licence")  # type: ignore[arg-type]
    family = None
    for entry in _entries(registry):
        if family not in (None, entry["family"]):
            table.add_section()
        family = entry["family"]
        table.add_row(*map(escape, _row(entry)[: len(table.columns)]))
    return table


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    mark = f" {NON_COMMERCIAL}" if entry["non_commercial"] else ""
    origin = "" if entry["origin"] == BUILT_IN else f" ({entry['origin']})"
    return (
        entry["model"] + mark,
        units.count(entry["params"]),
        units.count(entry["macs"]),
        units.plain(entry["growth"]),
        entry["sizes"],
        entry["implementation"] + origin,
        entry["licence"].partition(" (")[0],
    )


BY_CODE = "by its code"
"""Legal sizes of a model whose card names a function of code that is not built in."""


def legal_sizes(variant: Variant) -> str:
    """The legal resolutions of a variant as short text: `multiples of 32`, else `256,512,1k`.

    A multiple is tested at its first six values from 256 px on, at some of the next, and at those next to
    2048 px.  Listing a card that is not built in never runs its code; if that code decides, the text is
    `BY_CODE`.
    """
    if variant.origin != BUILT_IN and variant.card is not None and variant.card.resolution.plan is not None:
        return BY_CODE
    for step in STEPS:
        multiples = [*range(-(-256 // step) * step, 2049, step)]
        if all(_takes(variant, size) for size in [*multiples[:6], *multiples[6:40:9], *multiples[-2:]]):
            return "any" if step == 1 else f"multiples of {step}"
    legal = [size for size in SHOWN_SIZES if _takes(variant, size)]
    return ",".join(f"{size // 1024}k" if size % 1024 == 0 else str(size) for size in legal) or units.UNKNOWN


def _takes(variant: Variant, size: int) -> bool:
    try:
        variant.plan(size)
    except LongvisError:
        return False
    return True


def _licences(card: Card) -> str:
    """The licences of a family, in one line."""
    parts = {
        "code that runs": card.licences.code,
        "authors' code": card.licences.upstream,
        "authors' weights": card.licences.weights,
    }
    return f"{card.family}: " + "; ".join(f"{name} {licence}" for name, licence in parts.items() if licence)


def _content(registry: Registry, found: FoundCard) -> dict[str, Any]:
    """The card as data, with legal sizes, origin and BibTeX entry."""
    card = found.card
    content = card.model_dump(mode="json", by_alias=True)
    for name, variant in content["variants"].items():
        variant["sizes"] = legal_sizes(registry.find(name))
    return {**content, "origin": found.origin, "bibtex": bibtex(card)}


def _show(console: Console, registry: Registry, found: FoundCard) -> None:
    card = found.card
    console.print(f"[bold]{escape(card.family)}[/]  {escape(card.title)}")
    console.print(escape(card.summary))
    facts = {
        "paper": card.paper,
        "upstream": card.upstream and f"{card.upstream} @ {(card.commit or '')[:12]}",
        "code that runs": f"{card.implementation}, {card.licences.code}",
        "authors' code": card.licences.upstream,
        "authors' weights": card.licences.weights,
        "shipped weights": card.licences.trained,
        "found in": found.origin,
        "sizes": _sizes(card),
        "features": card.features and f"{card.features} (--output features)",
    }
    for label, value in facts.items():
        if value:
            console.print(f"  {label:17}{escape(value)}")
    if card.licences.non_commercial:
        console.print("  [bold]non-commercial[/]   some of the licences forbid commercial use")
    for note in card.notes:
        console.print(f"  - {escape(note)}")
    console.print(_variants(registry, card))
    if card.weights:
        console.print(_weights(card))
    if card.published:
        console.print(_published(card))
    entry = bibtex(card)
    if entry is not None:
        console.print(entry, markup=False, soft_wrap=True)


def bibtex(card: Card) -> str | None:
    """The BibTeX entry of a family's paper; None if its card has no authors or no arXiv number."""
    number = (card.paper or "").removeprefix("arXiv:")
    if not number[:4].isdigit() or card.paper_title is None or not card.authors:
        return None
    year = f"20{number[:2]}"
    key = card.authors[0].split()[-1].lower() + year + card.family
    return (
        f"@misc{{{key},\n"
        f"  title = {{{{{card.paper_title}}}}},\n"
        f"  author = {{{' and '.join(card.authors)}}},\n"
        f"  year = {{{year}}},\n"
        f"  eprint = {{{number}}},\n"
        "  archivePrefix = {arXiv}\n"
        "}"
    )


def _sizes(card: Card) -> str:
    rule = card.resolution
    oblong = f"Rectangles: {rule.rectangles}." if rule.rectangles else "Squares only."
    if rule.note:
        return f"{rule.note} {oblong}"
    most = f" up to {rule.maximum} px" if rule.maximum else ""
    return f"multiples of {rule.multiple_of} px from {max(rule.minimum, rule.multiple_of)} px{most}. {oblong}"


def _variants(registry: Registry, card: Card) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Variants", title_justify="left")
    for header in ("name", "params", "MACs", "sizes in px", "what", "arguments"):
        table.add_column(header, overflow="fold")
    for name, entry in card.variants.items():
        arguments = " ".join(f"{key}={value}" for key, value in entry.arguments.items())
        counts = (units.count(entry.params), units.count(entry.macs))
        sizes = legal_sizes(registry.find(name))
        table.add_row(*map(escape, (name, *counts, sizes, entry.summary, arguments)))
    return table


def _weights(card: Card) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Weights", title_justify="left")
    for header in ("variant", "data", "px", "file", "top-1"):
        table.add_column(header, overflow="fold")
    for entry in sorted(card.weights, key=lambda entry: (entry.variant, entry.dataset, entry.resolution)):
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
