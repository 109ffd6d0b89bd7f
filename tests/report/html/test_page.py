"""The page as text: its sections, its policy, escaped texts, downloads, and nothing of the machine."""

from __future__ import annotations

import base64
import getpass
import gzip
import hashlib
import json
import re
import socket
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.errors import RunDirectoryError
from longvis_bench.hashing import sha256_file
from longvis_bench.records import Row
from longvis_bench.report.baseline import with_baseline
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.html.chart_data import measures
from longvis_bench.report.html.charts import charts
from longvis_bench.report.html.page import ASSETS, SECTIONS, VENDORED, page, write_page
from longvis_bench.report.html.provenance import MARK, as_toml, licences
from longvis_bench.resolution import Rectangle, Resolution
from longvis_bench.runs.directory import read_rows, read_run
from longvis_bench.sweep.config import read_config
from tests.report.html.pages import QUICK, ROOT, ROWS, golden, hostile_rows, hostile_run, quick


class Page(HTMLParser):
    """What a page holds, element by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)

    def attributes(self, name: str) -> Iterator[str]:
        """Values of an attribute, of all elements."""
        return (value for _, found in self.elements if (value := found.get(name)) is not None)

    @property
    def said(self) -> str:
        """Text of all elements but scripts."""
        return " ".join(" ".join(self.texts).split())


def needs_tree() -> None:
    if not QUICK.is_dir():
        pytest.skip("the tests run apart from the source tree")


def test_the_page_has_its_sections_in_order() -> None:
    text = golden()
    places = [text.index(f'id="{name}-title">{title}<') for name, title in SECTIONS.items()]
    assert places == sorted(places)


def test_only_the_scripts_of_the_page_may_run() -> None:
    found = Page(golden())
    policy = next(
        a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found.scripts[1:]}
    assert len(hashes) == len(VENDORED) + 1
    assert hashes < allowed
    assert len(allowed - hashes) == 1, "and the hash of the style"


def test_the_page_names_no_other_place() -> None:
    found = Page(quick() if QUICK.is_dir() else golden())
    places = [*found.attributes("src"), *found.attributes("href"), *found.attributes("action")]
    assert {place.partition(":")[0] for place in places if not place.startswith("#")} == {"data"}
    assert not {tag for tag, _ in found.elements} & {"iframe", "object", "embed", "base", "form"}
    assert not [name for _, a in found.elements for name in a if name.startswith("on") or name == "style"]


def test_links_within_the_page_lead_somewhere() -> None:
    found = Page(golden())
    names = set(found.attributes("id"))
    assert {place[1:] for place in found.attributes("href") if place.startswith("#")} <= names
    assert set(found.attributes("aria-labelledby")) <= names


def test_a_failure_stands_in_its_place_with_its_reason() -> None:
    line = re.search(r"<tr[^>]*>(?:(?!</tr>).)*vit-n(?:(?!</tr>).)*tried to allocate.*?</tr>", golden(), re.S)
    assert line is not None
    assert 'class="failed"' in line.group()
    assert "1024" in line.group()


def test_the_result_names_the_front_and_what_is_not_separable() -> None:
    result = re.search(r'<section id="result".*?</section>', golden(), re.S)
    assert result is not None
    assert result.group().count("<li>") == 3, "a sentence per size"
    assert "Pareto front of accuracy against throughput, from the fastest: longvit-n" in result.group()
    assert "not separable from" in result.group()


def test_the_downloads_are_the_rows() -> None:
    links = {a["download"]: a["href"] for tag, a in Page(golden()).elements if "download" in a}
    table, stored = (
        base64.b64decode(str(links[name]).partition(",")[2]) for name in ("rows.csv", "cells.jsonl.gz")
    )
    assert table.decode().count("\n") == len(ROWS) + 1
    lines = gzip.decompress(stored).decode().splitlines()
    assert {Row.model_validate(json.loads(line)).key for line in lines} == {row.key for row in ROWS}


def test_the_same_rows_give_the_same_page() -> None:
    assert page(ROWS, [None]) == golden()


def test_no_path_and_no_name_of_this_machine_is_in_the_page() -> None:
    needs_tree()
    text = quick()
    assert str(Path.home()) + "/" not in text
    assert str(ROOT) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert len(name) < 5 or not re.search(rf"\b{re.escape(name)}\b", text.split("<script>")[0])


def test_paths_in_rows_do_not_reach_the_page() -> None:
    path = "/home/mallory/secret/net.py"
    cell = ROWS[0].cell.model_copy(update={"model": f"{path}:build", "weights": path})
    row = ROWS[0].model_copy(
        update={"cell": cell, "status": "error", "reason": f"cannot open {path}", "log_tail": path}
    )
    text = page([row], [{"invocations": [{"command": f"longvis bench {path}", "config": {"data": path}}]}])
    stored = re.findall(r'base64,([^"]*)"', text)
    contents = [base64.b64decode(one) for one in stored]
    contents += [gzip.decompress(one) for one in contents if one[:2] == b"\x1f\x8b"]
    assert "mallory" not in text
    assert not [one for one in contents if b"mallory" in one]
    assert "net.py:build" in text


def test_hostile_texts_stay_texts() -> None:
    found, harmless = Page(page(hostile_rows(), [hostile_run()])), Page(golden())
    assert len(found.scripts) == len(harmless.scripts)
    assert not [a for tag, a in found.elements if tag == "img" and not str(a.get("src")).startswith("data:")]
    assert not [a for _, a in found.elements if any(name.startswith("on") for name in a)]
    assert json.loads(found.scripts[0])["rows"][0]["series"].startswith("</script >")
    assert "window.owned" not in "".join(found.scripts[1:])


def test_the_configuration_is_toml_that_bench_reads() -> None:
    needs_tree()
    run = read_run(QUICK)
    assert run is not None
    config = run["invocations"][0]["config"]
    read = tomllib.loads("\n".join(as_toml(config)))
    assert read == {name: value for name, value in config.items() if value is not None}
    assert read_config(read).models == tuple(config["models"])
    assert as_toml({"hours_for": {"images": 3, "epochs": 2}, "a b": "\x7f"}) == [
        'hours_for = "3x2"',
        '"a b" = ""',
    ]


def test_what_a_report_adds_to_rows_is_in_the_page() -> None:
    rows = with_baseline(ROWS, "vit-n")
    assert "x vit-n" in Page(page(rows, [None])).said
    assert "x vit-n" not in Page(golden()).said


def test_licences_are_those_of_what_ran() -> None:
    mamba = ROWS[4]
    own, theirs = licences([mamba])[0], mamba.cell.model_copy(update={"implementation": "upstream"})
    assert (own.family, own.code, own.non_commercial) == ("mambavision", "Apache-2.0 (our own)", True)
    upstream = licences([mamba.model_copy(update={"cell": theirs})])[0]
    assert "NVIDIA" in upstream.code
    unknown = mamba.cell.model_copy(update={"family": "nowhere"})
    assert "no card" in licences([mamba.model_copy(update={"cell": unknown})])[0].code
    assert MARK in golden()


def test_weights_have_the_licence_that_the_card_states() -> None:
    needs_tree()
    found = {one.family: one.weights for one in licences(read_rows(QUICK))}
    assert found["mambavision"] in ("Apache-2.0", "not known: the card does not list the file")


def test_rows_without_accuracy_or_memory_say_so(row: Row) -> None:
    found = Page(page([row], [None])).said
    assert "No row has an accuracy." in found
    assert "no run.json" in found


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([512, 1024], "image size, pixels per side, log scale"),
        ([512, Rectangle(512, 2048)], "image size, square root of width x height in pixels, log scale"),
    ],
)
def test_the_axis_of_sizes_says_what_it_shows(sizes: list[Resolution], said: str) -> None:
    found = charts(measures(Grouped(ROWS)), sizes, accuracy=False)
    axes = [json.dumps(chart.spec) for chart in found if chart.name.endswith("-size")]
    assert axes
    assert all(said in axis and "[512, 1024]" in axis for axis in axes)


def test_no_rows_are_a_page_too() -> None:
    assert "There are no rows to draw." in page([], [])


def test_vendored_scripts_are_those_of_the_list() -> None:
    listed = json.loads((ASSETS / "vendored.json").read_text("utf-8"))
    assert set(listed) == set(VENDORED)
    texts = (ASSETS / "LICENCES.txt").read_text("utf-8")
    for name, facts in listed.items():
        assert sha256_file(ASSETS / name) == facts["sha256"]
        assert f"{facts['package']} {facts['version']} ({facts['licence']})" in texts


def test_no_script_holds_what_a_parser_takes_for_an_end() -> None:
    for name in (*VENDORED, "page.js"):
        assert "<!--" not in (ASSETS / name).read_text("utf-8")


# The command --------------------------------------------------------------------------------------------


def report(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", *arguments])
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "cells.jsonl").write_text("".join(row.to_json() + "\n" for row in ROWS), "utf-8")
    return folder


def test_the_command_writes_the_page_and_nothing_else(run: Path) -> None:
    code, said = report("run", "--html", "page.html")
    assert code == 0, said
    assert "Page: page.html" in said
    assert [path.name for path in run.iterdir()] == ["cells.jsonl"]
    assert Path("page.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone/page.html", "the folder gone of --html gone/page.html does not exist; make it first."),
        ("run", "--html takes the name of a page, like run.html, not run."),
        ("folder.html", "folder.html is a folder; --html takes the name of a page in it."),
    ],
)
def test_a_place_where_no_page_can_be_is_refused(run: Path, name: str, said: str) -> None:
    Path("folder.html").mkdir()
    code, output = report(str(run), "--html", name)
    assert code == 2
    assert said in output


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longvis_bench.report.html.page.write_whole", full)
    with pytest.raises(RunDirectoryError, match=r"cannot write .*page\.html: No space left on device"):
        write_page(tmp_path / "page.html", ROWS[:1], [None])
