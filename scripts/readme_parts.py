"""The generated parts of README.md and docs/, and docs/example.toml.

Run this file to write them; `test_docs.py` compares them.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterable
from contextlib import chdir
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from longvis_bench import units
from longvis_bench.cli.app import app
from longvis_bench.data.digits import Digits
from longvis_bench.data.lookup import CHANCE as GUESS
from longvis_bench.data.lookup import LOCAL_LIMIT, READING
from longvis_bench.data.pairs import CHANCE, KINDS, local_limit
from longvis_bench.registry.card import Card, WeightsEntry
from longvis_bench.registry.registry import Registry
from longvis_bench.report.per_class import worst_classes
from longvis_bench.report.summary import frame, terminal_table
from longvis_bench.runs.directory import latest, read_rows, read_run
from longvis_bench.runs.predictions import read_answers
from longvis_bench.stats import wilson
from longvis_bench.sweep.config_file import example_text
from longvis_bench.training.recipe import QUICK, TUNE

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
WIDTH = 112
EXAMPLE = ROOT / "docs" / "example.toml"
"""All fields of a configuration file; docs/running.md links to it."""
FIT = "fit --models atlas-s,vit-s --res 2048,4096 --gpu rtx4090 --mode infer,train"
"""The example of docs/choosing.md."""
REACH = "reach --models swin-n,mambavision-n,atlas-n,vit-n --res 512 --threads 2"
"""The example of docs/reach.md."""
LONG = ("fit", "reach")
"""Parts that take most of a minute each."""
SHORTCUTS = {
    "colour": "mean colour, linear",
    "32": "pixels of the image shrunk to 32 px, linear",
    "224": "pixels of the image shrunk to 224 px, linear",
    "lookup_bags.py:mean": "features of 45 px, mean over all positions, linear: a sum of local scores",
    "lookup_bags.py:maximum": "features of 45 px, maximum over all positions, linear",
    "lookup_bags.py:mlp": "features of 45 px, mean over all positions, MLP",
    "lookup_bags.py:small": "six convolutions that see 253 px, mean over all positions, linear",
}
"""Shortcuts to `lookup`, by probe or model."""
PART = re.compile(r"(<!-- begin: (\w+) -->\n)(.*?)(<!-- end: \2 -->)", re.DOTALL)


def parts() -> dict[str, Callable[[], str]]:
    """Every generated part by its name; its links start at the root of the repository."""
    return {
        "result": _result,
        "compare": lambda: _output(terminal_table(latest(read_rows(_run("atlas-mambavision-2048"))), WIDTH)),
        "sweep": lambda: _commands(
            "bench --models vit-s,atlas-s --res 1024,1536 --device cpu --threads 2 --dry-run"
        ),
        "memory": _memory,
        "fit": lambda: _commands(FIT),
        "reach": lambda: _commands(REACH),
        "flops": lambda: _first(_commands("flops vit-s --res 1024 --depth 1 --no-fvcore"), 2),
        "classes": _classes,
        "check": _check,
        "models": _models,
        "runs": _runs,
        "recipe": lambda: "\n".join(f"> {recipe.describe()}<br>" for recipe in (QUICK, TUNE))[:-4],
        "weights": _weights,
        "distance": _distance,
        "lookup": _lookup,
        "lookup_distance": _lookup_distance,
        "lookup_shortcuts": _lookup_shortcuts,
        "sizes": _sizes,
        "growth": _growth,
        "packages": _packages,
        "arrows": _arrows,
    }


def pages() -> list[Path]:
    """The README and the pages of docs/ that people write."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(page: Path, leave: Collection[str] = ()) -> str:
    """A page with its generated parts as they should be; those to leave are as they are."""
    up = "../" * (len(page.relative_to(ROOT).parts) - 1)

    def make(match: re.Match[str]) -> str:
        if match[2] in leave:
            return match[0]
        made = re.sub(r"\]\((?!https?:|#)", f"]({up}", parts()[match[2]]())
        return f"{match[1]}{made}\n{match[4]}"

    return PART.sub(make, page.read_text(encoding="utf-8"))


def _run(name: str) -> Path:
    """A committed run by its folder's name."""
    return next(path for path in sorted(REFERENCE.glob("*/*")) if path.name == name)


def _output(shown: RenderableType) -> str:
    """What a terminal of WIDTH columns shows."""
    text = StringIO()
    Console(file=text, width=WIDTH, highlight=False).print(shown)
    return _block(text.getvalue().splitlines())


def _block(lines: Iterable[str]) -> str:
    """A block of text without the blanks at its end and at the ends of its lines."""
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    return f"```text\n{text}\n```"


def _commands(*commands: str) -> str:
    """What the last of some commands prints; they run in one folder and print the same on every machine."""
    look = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with TemporaryDirectory() as folder, chdir(folder):
        for command in commands:
            done = CliRunner().invoke(app, command.split(), env=look)
            assert done.exit_code == 0, f"{command}: {done.output}"
    return _block(done.stdout.splitlines())


def _first(output: str, paragraphs: int) -> str:
    """The first paragraphs of an output, and three dots for the rest."""
    kept = output.removesuffix("\n```").split("\n\n")[:paragraphs]
    return "\n\n".join(kept) + "\n...\n```"


def _check() -> str:
    """The first and the last line of a check, and those between that are the same on every processor."""
    lines = _commands("new mynet", "check mynet").splitlines()
    return "\n".join([*lines[:4], "...", *lines[-3:]])


def _memory() -> str:
    """The table of `longvis report --memory`, without the sentences below it that explain the columns."""
    return _first(_commands(f"report {_run('atlas-mambavision-2048')} --memory"), 1)


def _classes() -> str:
    """The worst classes of convnext-n at 256 px, from the predictions of the committed run."""
    run = _run("quick")
    chosen = [row for row in latest(read_rows(run)) if _is_example(row.cell.model, row.cell.resolution)]
    return _first(_output(worst_classes(read_answers(chosen, [run]))), 1)


def _is_example(model: str, resolution: object) -> bool:
    return (model, resolution) == ("convnext-n", 256)


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
            f"Nano variants on {machine}, {asked['created'][:10]}, batch 1, fp32, by `{asked['command']}` "
            f"([all rows]({folder}/summary.md)):",
            "",
            *_table(frame(latest(read_rows(run)))),
            "",
            f"{_images(run)}Nano variants do not rank the architectures.",
        ]
    )


def _images(run: Path) -> str:
    """Which held-out images the accuracies of a run on digits are of; its predictions say the same."""
    held_out = Digits().size("val")
    kept = [found.images.indices for found in read_answers(latest(read_rows(run)), [run])]
    used = {tuple(map(int, indices)) for indices in kept if indices is not None}
    count = len(next(iter(used)))
    assert used == {tuple(index * held_out // count for index in range(count))}
    return (
        f"Top-1 is that of the shipped weights on {count} of the {held_out} held-out digits, evenly spaced "
        f"in file order:\nnumber floor({held_out} k / {count}) for k = 0, 1, ..., {count - 1}. "
        f"`--images {held_out}` takes all. "
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


def _records(file: str) -> list[dict[str, Any]]:
    """What results/lookup/ has in a file."""
    text = (ROOT / "results" / "lookup" / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _trainings(*, shortcuts: bool) -> list[dict[str, Any]]:
    """Trainings on `lookup`: of models on whole scenes, or those that show a shortcut."""
    every = _records("trainings.jsonl")
    return [
        one
        for one in sorted(every, key=lambda one: (one["data"], one["resolution"], one["presentations"]))
        if ("shrunk" in one["data"] or ".py:" in one["model"]) == shortcuts
    ]


def _right(right: int, images: int) -> str:
    """A share with its interval."""
    ends = wilson(right, images)
    assert ends is not None
    return _top1(right / images, *ends)


def _lookup() -> str:
    """One line per training, with the verdict that its interval allows."""
    lines = ["| model | data | px | images seen | seed | right, of 1,000 | says | minutes of a core |"]
    lines.append("|---|---|---:|---:|---:|---:|---|---:|")
    for one in _trainings(shortcuts=False):
        right, minutes = _right(one["right"], one["images"]), f"{one['minutes']:.0f}"
        lines.append(f"{_training(one)} | {one['seed']} | {right} | {_verdict(one)} | {minutes} |")
    return "\n".join(lines)


def _training(one: dict[str, Any]) -> str:
    """The first cells of a line, which say what was trained."""
    return f"| {one['model']} | `{one['data']}` | {one['resolution']} | {one['presentations']:,}"


def _verdict(one: dict[str, Any]) -> str:
    """What the 95 % interval says, by the bars of the task."""
    ends = wilson(one["right"], one["images"])
    assert ends is not None
    levels = ((LOCAL_LIMIT, "relates"), (READING, "more than reading"), (GUESS, "reads"))
    return next((word for level, word in levels if ends[0] > level), "not above chance")


def _lookup_distance() -> str:
    """Accuracy in bins of the distance from the key to its disc, of the first seed without dials."""
    every = [one for one in _trainings(shortcuts=False) if (one["data"], one["seed"]) == ("lookup", 0)]
    bins = [one[:2] for one in every[0]["by_distance"]]
    heads = " | ".join(f"{low:.2f}-{high:.2f}" for low, high in bins)
    lines = [f"| model | data | px | images seen | {heads} |", "|---|---|---:|---:|" + "---:|" * len(bins)]
    for one in every:
        shares = " | ".join(_right(right, images) for *_, right, images in one["by_distance"])
        lines.append(f"{_training(one)} | {shares} |")
    return "\n".join(lines)


def _lookup_shortcuts() -> str:
    lines = [
        "| shortcut | scenes | right, of 1,000 held-out | right, of the training scenes |",
        "|---|---:|---:|---:|",
    ]
    for one in _records("probes.jsonl"):
        own = units.percent(one["right_on_train"] / one["scenes"])
        right = _right(one["right"], one["images"])
        lines.append(f"| {SHORTCUTS[one['probe']]} | {one['scenes']:,} | {right} | {own} |")
    for one in _trainings(shortcuts=True):
        shrunk = "shrunk" in one["data"]
        name = (
            f"{one['model']}, the image shrunk to {one['resolution']} px"
            if shrunk
            else SHORTCUTS[one["model"]]
        )
        lines.append(
            f"| {name} | {one['presentations']:,} | {_right(one['right'], one['images'])} | all new |"
        )
    return "\n".join(lines)


def _accuracy(entry: WeightsEntry) -> str:
    """Top-1 of a file on all held-out images, as its card says."""
    assert entry.top1 is not None
    assert entry.images is not None
    ends = wilson(round(entry.top1 * entry.images), entry.images)
    assert ends is not None
    return _top1(entry.top1, *ends)


def _models() -> str:
    lines = ["| family | variants | code that runs | licence | weights that ship |", "|---|---|---|---|---|"]
    further = []
    for found in Registry(working_dir=ROOT).cards:
        card = found.card
        if not card.weights:
            further.append(f"[{card.family}](models/{card.family}/README.md)")
            continue
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
    if further:
        lines += ["", f"Without weights: {', '.join(further)}."]
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


def _sizes() -> str:
    """The rule of each family, as its card says it."""
    lines = ["| family | legal sizes |", "|---|---|"]
    lines += [
        f"| {one.card.family} | {one.card.resolution.note} |" for one in Registry(working_dir=ROOT).cards
    ]
    return "\n".join(lines)


def _growth() -> str:
    """The growth that each card claims."""
    lines = ["| family | growth with n tokens |", "|---|---|"]
    for found in Registry(working_dir=ROOT).cards:
        lines.append(f"| {found.card.family} | {found.card.growth or 'none claimed'} |")
    return "\n".join(lines)


def _packages() -> str:
    """Every package and every module at the root, by the first sentence of its docstring."""
    package = ROOT / "longvis_bench"
    folders = sorted(path.parent for path in package.rglob("__init__.py"))
    lines = ["| package | what it is |", "|---|---|"]
    for folder in folders[1:]:
        name = folder.relative_to(package).as_posix()
        lines.append(f"| `{name}/` | {_first_sentence(folder / '__init__.py')} |")
    for module in sorted(package.glob("[a-z]*.py")):
        lines.append(f"| `{module.stem}` | {_first_sentence(module)} |")
    return "\n".join(lines)


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z`)])\. ", paragraph + " ")[0].strip().rstrip(".")


def _arrows() -> str:
    """The layers of import-linter's contract, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return "\n".join(["```text", *contract["layers"], "```"])


if __name__ == "__main__":
    for page in pages():
        page.write_text(render(page), encoding="utf-8")
    EXAMPLE.write_text(example_text(), encoding="utf-8")
