"""The page in a real browser: used by keyboard, checked by axe-core, printed, and attacked.

It needs node, Chromium, and a folder with puppeteer-core and axe-core, which `.ci/run` installs:
`LONGVIS_BROWSER_MODULES=FOLDER/node_modules`.  The browser is `LONGVIS_BROWSER`, or the first of `BROWSERS`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvis_bench.records import Row
from longvis_bench.report.html.page import SECTIONS, page
from tests.report.html.pages import QUICK, ROWS, hostile_rows, hostile_run, quick

BROWSERS = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "google-chrome")
DRIVE = Path(__file__).with_name("drive.mjs")
Found = dict[str, Any]
Drive = Callable[..., Found]


def why_not() -> str:
    """Why there is no browser to test in; empty if there is one."""
    if shutil.which("node") is None:
        return "needs node"
    if not (modules() / "puppeteer-core").is_dir() or not (modules() / "axe-core").is_dir():
        return "needs LONGVIS_BROWSER_MODULES, a folder with puppeteer-core and axe-core"
    return "" if browser() else f"needs a browser: {', '.join(BROWSERS)}"


def modules() -> Path:
    """The folder of npm's packages."""
    return Path(os.environ.get("LONGVIS_BROWSER_MODULES", "node_modules")).absolute()


def browser() -> str | None:
    """The browser's program."""
    named = os.environ.get("LONGVIS_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """Opens a page and returns what `drive.mjs` found."""

    def opened(name: str, text: str, *only: str) -> Found:
        kept = os.environ.get("LONGVIS_BROWSER_OUT")
        folder = Path(kept) / name if kept else tmp_path_factory.mktemp(name)
        folder.mkdir(exist_ok=True, parents=True)
        file = folder / "page.html"
        file.write_text(text, encoding="utf-8")
        command = ["node", str(DRIVE), str(modules()), str(browser()), str(file), str(folder), *only]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found: Found = json.loads(done.stdout)
        print(name, done.stderr)
        return {**found, "pdf": None if only else (folder / "page.pdf").read_bytes()}

    return opened


@pytest.fixture(scope="module")
def used(drive: Drive) -> Found:
    """A page of 21 rows in use."""
    if QUICK.is_dir():
        return drive("quick", quick())
    return drive("golden", page(ROWS, [None]))


def figures(found: Found, when: str) -> dict[str, Found]:
    return {figure["name"]: figure for figure in found[when]["figures"]}


def test_nothing_is_complained_of_and_nothing_requested(used: Found) -> None:
    assert used["messages"] == []
    assert used["requests"] == []


@pytest.mark.alone
def test_a_page_of_21_rows_opens_in_a_second_and_a_half(used: Found) -> None:
    assert used["seconds"] < 1.5


def test_every_figure_has_marks_and_a_text_alternative(used: Found) -> None:
    found = figures(used, "first")
    assert set(found) == {
        *(f"accuracy-{cost}" for cost in ("throughput", "memory", "macs")),
        *("latency-size", "memory-size", "ranked"),
    }
    for name, figure in found.items():
        assert figure["marks"] >= 21, name
        assert len(figure["alternative"]) > 60, name
        assert figure["says"], name


def test_sorting_by_keyboard_changes_table_and_figure(used: Found) -> None:
    assert used["reachedSorting"]
    rising, falling = used["rising"], used["falling"]
    column = next(i for i, head in enumerate(used["first"]["heads"]) if "latency" in head)
    assert (rising["sorted"][column], falling["sorted"][column]) == ("ascending", "descending")
    assert rising["rows"] == falling["rows"][::-1] != used["first"]["rows"]
    assert used["unsorted"]["rows"] == used["first"]["rows"]
    names = [figures(used, when)["ranked"]["texts"] for when in ("first", "rising", "falling")]
    assert names[0] != names[1] != names[2]
    first = [next(text for text in texts if text.startswith("1. ")) for texts in names[1:]]
    assert first == ["1. vit-n 256", "1. vit-n 1024"]


def test_filtering_by_keyboard_changes_table_and_figures(used: Found) -> None:
    assert used["reachedWords"]
    assert used["filtered"]["count"] == "3 of 21 rows"
    assert used["filtered"]["legend"] == ["swin-n"]
    assert {figure["marks"] for figure in used["filtered"]["figures"]} == {3}
    before, after = (figures(used, when) for when in ("first", "filtered"))
    assert all(before[name]["says"] != after[name]["says"] for name in before if name != "ranked")
    assert used["reachedReset"]
    assert used["reset"]["count"] == "21 of 21 rows"
    assert {figure["marks"] for figure in used["reset"]["figures"]} == {21}


def test_choosing_a_size_by_keyboard_changes_table_and_figures(used: Found) -> None:
    assert used["reachedChoice"]
    assert used["chosen"]["value"] == "256"
    assert used["chosen"]["count"] == "7 of 21 rows"
    assert {figure["marks"] for figure in used["chosen"]["figures"]} == {7}


def test_picking_a_model_pales_the_others_in_all_figures(used: Found) -> None:
    assert used["reachedLegend"]
    assert used["pale"] == 5 * 18, "18 of 21 marks in each of five figures"


def test_axe_finds_nothing_serious(used: Found) -> None:
    assert [one for one in used["violations"] if one["impact"] in ("serious", "critical")] == []


def test_a_narrow_window_does_not_scroll_sideways(used: Found) -> None:
    assert used["narrowOverflow"] <= 0


def test_the_printed_page_has_all_sections(used: Found) -> None:
    assert used["sections"] == used["printed"] == list(SECTIONS.values())
    pdf: bytes = used["pdf"]
    assert pdf.startswith(b"%PDF")
    titles = set(re.findall(rb"/Title \(([^)]*)\)", pdf))
    assert {title.encode() for title in SECTIONS.values()} <= titles
    box = re.search(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert box is not None
    assert (round(float(box[1])), round(float(box[2]))) == (595, 842), "A4 in points"


def test_without_scripts_there_are_static_figures(used: Found) -> None:
    assert used["images"] == 5


def test_failures_are_marks_with_their_status(drive: Drive) -> None:
    found = figures(drive("golden", page(ROWS, [None]), "open"), "first")
    lost = {"vit-n: oom", "longvit-n: timeout", "swin-n: skipped", "fastervit-n: invalid"}
    for name in ("latency-size", "memory-size"):
        assert lost <= set(found[name]["texts"]), name
        assert found[name]["marks"] == 21, "17 values and 4 crosses"
    numbers = [int(text.partition(".")[0]) for text in found["ranked"]["texts"] if re.match(r"\d+\. ", text)]
    assert numbers == list(range(1, 22)), "failures keep their place"


def many(number: int) -> list[Row]:
    """So many rows of models of their own at three sizes, with accuracies and failures."""
    return [
        row.model_copy(
            update={
                "key": f"{n}-{row.cell.resolution}",
                "cell": row.cell.model_copy(update={"model": f"timm:net_{n}", "variant": f"net_{n}"}),
            }
        )
        for n in range(-(-number // 3))
        for row in (ROWS[n % 7], ROWS[7 + n % 7], ROWS[14 + n % 7])
    ][:number]


@pytest.mark.alone
def test_a_page_of_2000_rows_opens_in_five_seconds(drive: Drive) -> None:
    found = drive("many", page(many(2000), [None]), "open")
    assert found["messages"] == []
    assert found["first"]["count"] == "2000 of 2000 rows"
    assert found["seconds"] < 5


@pytest.fixture(scope="module")
def attacked(drive: Drive) -> Found:
    """A page of which every text is an attack."""
    return drive("hostile", page(hostile_rows(), [hostile_run()]))


def test_hostile_texts_run_nothing(attacked: Found) -> None:
    assert attacked["ready"] == "yes"
    assert attacked["owned"] is None
    assert attacked["dialogs"] == 0
    assert attacked["messages"] == []
    assert attacked["requests"] == []


def test_the_policy_stops_a_script_that_got_in(drive: Drive) -> None:
    """If escaping failed once, the policy still holds."""
    text = page(ROWS[:2], [None]).replace(
        "<main>", "<main><script>window.owned=1</script><img src=x onerror=owned=2>"
    )
    found = drive("broken-in", text)
    assert found["owned"] is None
    assert any("Content Security Policy" in message for message in found["messages"])
