"""Where rows come from: commands, configurations, environments, code, weights and licences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from longvis_bench import units
from longvis_bench.errors import CardError
from longvis_bench.records import Environment, Row, TrainLength
from longvis_bench.registry.card import Card
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry
from longvis_bench.report.grouping import natural
from longvis_bench.report.html.markup import NOTHING, Markup, element, items, joined, lines, shown, table

RunFile = Mapping[str, Any]
"""Content of a run.json."""
NO_CARD = "not known: the model has no card"
MARK = "non-commercial in part"


def provenance(rows: Sequence[Row], runs: Sequence[RunFile | None]) -> Markup:
    """What measured the rows, and under which licences.

    Arguments:
        rows: of all runs.
        runs: the run.json of each run; None for a file of rows alone.
    """
    several = len(runs) > 1
    each = [_run(run, f"Run {number}: " if several else "") for number, run in enumerate(runs, start=1)]
    return joined([*each, _code(rows), _weights(rows), _licences(rows)])


# Commands and environment -------------------------------------------------------------------------------


def _run(run: RunFile | None, prefix: str) -> Markup:
    if run is None:
        return element(
            "p", f"{prefix}no run.json lies beside these rows, so command and environment are not known."
        )
    commands = [_command(invocation, prefix) for invocation in run.get("invocations", ())]
    return joined([*commands, _environment(run.get("environment", {}), prefix)])


def _command(invocation: Mapping[str, Any], prefix: str) -> Markup:
    command, created = invocation.get("command"), invocation.get("created")
    made = f"{prefix}longvis {invocation.get('longvis') or 'of unknown version'}, {created or 'date unknown'}"
    cut = [str(name) for name in invocation.get("cut") or ()]
    parts = [
        element("h3", made),
        lines([str(command)]) if command else element("p", "The command is not known."),
    ]
    if cut:
        parts.append(element("p", f"Paths of these fields are left out: {', '.join(cut)}."))
    config = invocation.get("config")
    if isinstance(config, Mapping):
        parts += [
            element("p", "The resolved configuration, for longvis bench --config FILE:"),
            lines(as_toml(config)),
        ]
    return joined(parts)


def as_toml(config: Mapping[str, Any]) -> list[str]:
    """A stored configuration as lines of TOML; fields without a value are left out.

    Strings, numbers, booleans and lists of them are written alike in TOML and JSON.
    """
    return [f"{_field(name)} = {_toml(value)}" for name, value in config.items() if value is not None]


def _field(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):  # a length of training
        value = str(TrainLength.model_validate(dict(value)))
    return json.dumps(_clean(value), ensure_ascii=False)


def _clean(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return shown(value) if isinstance(value, str) else value


def _environment(stored: Mapping[str, Any], prefix: str) -> Markup:
    try:
        found = Environment.model_validate(dict(stored))
    except ValidationError:
        return element("p", f"{prefix}the environment in run.json cannot be read.")
    facts = {
        "machine": found.machine,
        "processor": f"{found.processor}, {units.several(found.cores, 'core')}",
        "memory": units.size(found.memory_bytes),
        "GPU": found.gpu or "none",
        "driver": found.driver,
        "system": found.system,
        "Python": found.python,
        **found.versions,
        **found.flags,
        **{f"processor, {name}": text for name, text in found.cpu.items()},
    }
    pairs = [[name, text] for name, text in facts.items() if text]
    heading = element("h3", f"{prefix}environment {found.hash}")
    return joined([heading, table(["what", "value"], pairs, "Environment")])


# Code, weights and licences -----------------------------------------------------------------------------


def _code(rows: Sequence[Row]) -> Markup:
    known = sorted({row.code for row in rows if row.code is not None})
    without = sum(row.code is None for row in rows)
    said = f"Hashes of the measuring code: {', '.join(known)}." if known else ""
    missing = f"{units.several(without, 'row')} of older versions without a hash." if without else ""
    return joined([element("h3", "Code"), element("p", " ".join(filter(None, (said, missing))))])


def _weights(rows: Sequence[Row]) -> Markup:
    files = {(row.cell.weights, row.cell.weights_sha256) for row in rows if row.cell.weights}
    heading = element("h3", "Weights")
    random = sum(row.cell.weights is None for row in rows)
    said = [f"{units.several(random, 'row')} with fresh random weights."] if random else []
    pairs = [[name or "", digest or "not recorded"] for name, digest in sorted(files, key=_by_name)]
    found = table(["file", "SHA-256"], pairs, "Weights") if pairs else NOTHING
    return joined([heading, found, items(said)])


def _by_name(file: tuple[str | None, str | None]) -> tuple[object, ...]:
    return natural(file[0] or ""), file[1] or ""


class Licence(NamedTuple):
    """Licences of what ran for one family."""

    family: str
    code: str
    weights: str
    non_commercial: bool
    """Whether some part of the family, even one that did not run, is for non-commercial use only."""


def licences(rows: Iterable[Row]) -> list[Licence]:
    """The licences of the rows' code and weights, by the cards of their families."""
    cards = _cards()
    found = {_licence(row, cards.get(row.cell.family)) for row in rows}
    return sorted(found, key=lambda one: (natural(one.family), one.code, one.weights))


def _cards() -> dict[str, Card]:
    """Family -> card; of the built-in ones alone where a user's card cannot be read."""
    try:
        return {each.card.family: each.card for each in Registry().cards}
    except CardError:
        return {each.card.family: each.card for each in built_in_cards()}


def _licence(row: Row, card: Card | None) -> Licence:
    if card is None:
        weights = "not known" if row.cell.weights else "random"
        return Licence(row.cell.family, NO_CARD, weights, False)
    own = row.cell.implementation == card.implementation
    code = card.licences.code if own else card.licences.upstream or "not stated by the card"
    return Licence(card.family, code, _of_weights(row, card), card.licences.non_commercial)


def _of_weights(row: Row, card: Card) -> str:
    if row.cell.weights is None:
        return "random"
    entry = next((one for one in card.weights if one.sha256 and one.sha256 == row.cell.weights_sha256), None)
    if entry is None:
        return "not known: the card does not list the file"
    stated = card.licences.trained if entry.file else card.licences.weights
    return stated or "not stated by the card"


def _licences(rows: Sequence[Row]) -> Markup:
    found = licences(rows)
    cells = [
        [one.family, one.code, one.weights, element("b", MARK, class_="bad") if one.non_commercial else ""]
        for one in found
    ]
    heading = element("h3", "Licences")
    said = element(
        "p",
        f"“{MARK}”: some code or weights of the family, not necessarily those measured here, forbid "
        "commercial use.",
    )
    marked = any(one.non_commercial for one in found)
    return joined(
        [heading, table(["family", "code", "weights", ""], cells, "Licences"), said if marked else NOTHING]
    )
