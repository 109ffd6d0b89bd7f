"""Pages that the tests of this folder share: a harmless one, one of a real run, and attacks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longvis_bench.records import Row
from longvis_bench.report.html.page import page
from longvis_bench.runs.directory import read_rows, read_run
from longvis_bench.runs.predictions import read_answers

ROOT = Path(__file__).parents[3]
ROWS = read_rows(ROOT / "tests" / "golden_tables" / "rows.jsonl")
QUICK = ROOT / "results" / "reference" / "intel-xeon-2c" / "quick"
HOSTILE = '</script ><script>window.owned=1</script ><img src=x onerror="window.owned=2">{{constructor}}\'\\'


@cache
def golden() -> str:
    return page(ROWS, [None])


@cache
def quick() -> str:
    rows = read_rows(QUICK)
    return page(rows, [read_run(QUICK)], read_answers(rows, [QUICK]))


def hostile(value: Any) -> Any:
    """The same with each text replaced."""
    if isinstance(value, dict):
        return {name: hostile(found) for name, found in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(found) for found in value]
    return HOSTILE if isinstance(value, str) else value


def attack(harmless: dict[str, Any]) -> Row:
    """A row of which every text is an attack, but for words that the schema lists."""
    stored = hostile(harmless)
    try:
        return Row.model_validate(stored)
    except ValidationError as refused:
        for fault in refused.errors():
            *way, last = (step for step in fault["loc"])
            there: Any = stored
            here: Any = harmless
            for step in way:
                there, here = there[step], here[step]
            there[last] = here[last]
    return Row.model_validate(stored)


def hostile_rows() -> list[Row]:
    """Rows of which every text is an attack."""
    rows = []
    for index, row in enumerate([*ROWS[:3], *(row for row in ROWS if row.status != "ok")]):
        stored = row.model_dump(by_alias=True)
        stored["cell"] |= {"weights": "w", "arguments": {HOSTILE: "w"}, "seed": index}
        stored |= {
            "reason": "r",
            "machine": "m",
            "backends": {HOSTILE: "b"},
            "attention": "a",
            "log_tail": "l",
        }
        stored |= {"null_reasons": {"accuracy": "n"}}
        stored["notes"] = [{"code": "drift", "message": "m", "advice": "a"}]
        rows.append(attack(stored).model_copy(update={"key": f"{HOSTILE}{index}"}))
    return rows


def hostile_run() -> dict[str, Any]:
    """A run.json of attacks."""
    environment = {"machine": HOSTILE, "processor": HOSTILE, "cores": 2, "memory_bytes": 1, "system": HOSTILE}
    environment |= {"python": HOSTILE, "versions": {HOSTILE: HOSTILE}, "flags": {HOSTILE: HOSTILE}}
    invocation = {"command": HOSTILE, "longvis": HOSTILE, "created": HOSTILE, "config": {HOSTILE: [HOSTILE]}}
    return {"environment": environment, "invocations": [{**invocation, "cut": [HOSTILE]}]}
