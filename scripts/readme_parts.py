"""The generated parts of README.md: run this file to write them; `test_docs.py` compares them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from rich.console import Console, RenderableType

from longvis_bench import units
from longvis_bench.data.pairs import CHANCE, KINDS, local_limit
from longvis_bench.registry.card import Card, WeightsEntry
from longvis_bench.registry.registry import Registry
from longvis_bench.report.summary import frame, terminal_table
from longvis_bench.runs.directory import latest, read_rows, read_run
from longvis_bench.stats import wilson
from longvis_bench.training.recipe import QUICK, TUNE

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
WIDTH = 100
PART = re.compile(r"(<!-- begin: (\w+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)


def parts() -> dict[str, str]:
    """Every generated part by its name."""
    return {
        "result": _result(),
        "models": _models(),
        "runs": _runs(),
        "tree": _tree(),
        "recipe": "\n".join(f"> {recipe.describe()}<br>" for recipe in (QUICK, TUNE)).removesuffix("<br>"),
        "weights": _weights(),
        "distance": _distance(),
        "compare": _output(terminal_table(latest(read_rows(_run("atlas-mambavision-2048"))), WIDTH)),
        "sweep": _command(
            "bench --models vit-s,swin-s,atlas-s --res 1024,1536 --device cpu --threads 2 --dry-run"
        ),
        "flops": _command("flops vit-s --res 1024 --depth 1 --no-second-opinion"),
    }


def render(readme: str) -> str:
    """The README with its generated parts as they should be."""
    made = parts()
    return PART.sub(lambda match: f"{match[1]}{made[match[2]]}\n{match[4]}", readme)


def _run(name: str) -> Path:
    """A committed run by its folder's name."""
    return next(path for path in sorted(REFERENCE.glob("*/*")) if path.name == name)


def _output(shown: RenderableType) -> str:
    """What a terminal of 100 columns shows."""
    text = StringIO()
    Console(file=text, width=WIDTH, highlight=False).print(shown)
    lines = [line.rstrip() for line in text.getvalue().strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


def _command(arguments: str) -> str:
    """The output of a command that gives the same on every machine."""
    command = [sys.executable, "-m", "longvis_bench", *arguments.split()]
    environment = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONPATH": str(ROOT),
    }
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=environment, check=True
        )
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


def _about(run: Path) -> tuple[str, dict[str, str]]:
    """Where a reference run was made, and its last command."""
    about = read_run(run)
    assert about is not None
    asked = about["invocations"][-1]
    command = re.sub(r" --out \S+", "", asked["command"])  # where rows land is no part of what they are
    return about["environment"]["machine"], {**asked, "command": command}


def _result() -> str:
    run = _run("quick")
    machine, asked = _about(run)
    folder = run.relative_to(ROOT)
    return "\n".join(
        [
            f"![Throughput against resolution]({folder}/plots/throughput.png)",
            "",
            f"Nano variants on {machine}, {asked['created'][:10]}, batch 1, fp32, by",
            f"`{asked['command']}` ([all rows]({folder}/summary.md)):",
            "",
            *_table(frame(latest(read_rows(run)))),
            "",
            "Top-1 is that of the shipped weights on 128 of the 397 held-out digits. Nano variants show that",
            "every path works on a laptop; they do not rank the architectures.",
        ]
    )


def _table(rows: pd.DataFrame) -> list[str]:
    """A line a model: accuracy and speed at the smallest and the largest size, cost at the largest."""
    smallest, largest = rows.resolution.min(), rows.resolution.max()
    headings = [f"{what}, {size} px" for what in ("top-1 [95 %]", "img/s") for size in (smallest, largest)]
    headings += [f"{what}, {largest} px" for what in ("peak memory", "MACs", "params")]
    lines = [f"| model | {' | '.join(headings)} |", "|---" + "|---:" * len(headings) + "|"]
    for model in rows.model.unique():
        mine = rows[rows.model == model].set_index("resolution")
        small, large = mine.loc[smallest], mine.loc[largest]
        cells = [
            model,
            *(_top1(size.top1, size.top1_low, size.top1_high) for size in (small, large)),
            units.rate(small.throughput_img_s),
            units.rate(large.throughput_img_s),
            units.size(large.peak_memory_bytes),
            units.count(large.macs),
            units.count(large.params),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _top1(top1: float, low: float, high: float) -> str:
    return f"{units.percent(top1)} [{units.percent(low)}, {units.percent(high)}]"


def _weights() -> str:
    """A line a model that ships weights, a column a data set and size."""
    shipped = [
        entry for found in Registry(working_dir=ROOT).cards for entry in found.card.weights if entry.file
    ]
    places = sorted({(entry.dataset, entry.resolution) for entry in shipped})
    lines = [f"| model | {' | '.join(f'{data}, {size} px' for data, size in places)} |"]
    lines.append("|---" + "|---:" * len(places) + "|")
    for model in dict.fromkeys(entry.variant for entry in shipped):
        mine = {(entry.dataset, entry.resolution): entry for entry in shipped if entry.variant == model}
        cells = [_accuracy(mine[place]) if place in mine else "-" for place in places]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    plots = _run("quick").relative_to(ROOT) / "plots"
    lines += ["", f"![Accuracy against throughput]({plots}/accuracy-throughput.png)"]
    return "\n".join(lines)


def _distance() -> str:
    """Accuracy against distance on `pairs`, and whose intervals lie above what reading less would give."""
    run = _run("pairs")
    machine, asked = _about(run)
    rows = frame(latest(read_rows(run)))
    limit = local_limit(len(KINDS))
    above = {
        f"above chance ({units.percent(CHANCE)})": rows.top1_low > CHANCE,
        f"above a sum of local scores ({units.percent(limit)})": rows.top1_low > limit,
        "not separable from chance": (rows.top1_low <= CHANCE) & (rows.top1_high >= CHANCE),
    }
    said = [f"{what}: {', '.join(rows.model[which]) or 'none'}" for what, which in above.items()]
    folder = run.relative_to(ROOT)
    return "\n".join(
        [
            f"![Accuracy against distance]({folder}/plots/accuracy-distance-512.png)",
            "",
            f"{machine}, {asked['created'][:10]}, `{asked['command']}` ([all rows]({folder}/summary.md)).",
            f"By the 95 % interval, {'; '.join(said)}.",
        ]
    )


def _accuracy(entry: WeightsEntry) -> str:
    """Top-1 of a file on all held-out images, as its card says."""
    assert entry.top1 is not None
    assert entry.images is not None
    ends = wilson(round(entry.top1 * entry.images), entry.images)
    assert ends is not None
    return _top1(entry.top1, *ends)


def _models() -> str:
    lines = ["| family | variants | code that runs | licence | weights that ship |", "|---|---|---|---|---|"]
    for found in Registry(working_dir=ROOT).cards:
        card = found.card
        variants = ", ".join(name.removeprefix(f"{card.family}-") for name in card.variants)
        shipped = "; ".join(
            f"{model}, {data}: {', '.join(str(size) for size in sizes)} px"
            for (model, data), sizes in _shipped(card).items()
        )
        licence = card.licences.code
        if card.licences.non_commercial and card.implementation == "native":
            licence += "; the authors' package and weights are non-commercial"
        name = f"[{card.family}](models/{card.family}/README.md)"
        lines.append(f"| {name} | {variants} | {card.implementation} | {licence} | {shipped} |")
    return "\n".join(lines)


def _shipped(card: Card) -> dict[tuple[str, str], list[int]]:
    """Model and data set -> the sizes that weights ship for."""
    found: dict[tuple[str, str], list[int]] = {}
    for entry in card.weights:
        if entry.file:
            found.setdefault((entry.variant, entry.dataset), []).append(entry.resolution)
    return found


def _runs() -> str:
    lines = ["| run | machine | rows | made with |", "|---|---|---|---|"]
    for run in sorted(path.parent for path in REFERENCE.glob("*/*/run.json")):
        machine, asked = _about(run)
        folder = run.relative_to(ROOT)
        rows = len(latest(read_rows(run)))
        lines.append(f"| [{run.name}]({folder}/summary.md) | {machine} | {rows} | `{asked['command']}` |")
    return "\n".join(lines)


def _tree() -> str:
    lines = []
    tracked = subprocess.run(
        ["git", "ls-files", "longvis_bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in sorted(tracked, key=_folders_last):
        if name.endswith(".py") and not name.endswith("__init__.py"):
            lines.append(f"{name:42}{_first_line(ROOT / name)}")
    return "\n".join(["```text", *lines, *_OTHERS, "```"])


_OTHERS = (
    f"{'models/<family>/':42}card.toml, README.md, shipped weights: data only",
    f"{'results/reference/<machine>/<run>/':42}committed runs; results/README.md explains every column",
    f"{'tests/':42}one file a module; golden/ holds outputs of the authors' own code",
)


def _folders_last(name: str) -> tuple[int, str]:
    return name.count("/"), name


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = docstring.split("\n")[0]
    first = re.split(r"(?<=[a-z`)])[.:;] ", line + " ")[0].strip().rstrip(".")
    return first if len(first) <= 76 else first[:75].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(render(readme.read_text()))
