"""The LaTeX table: well formed by a parser of ours, with every row, bold leaders and footnotes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from longvis_bench.records import MemoryRecord, Row, TimingRecord
from longvis_bench.report.best import best_keys
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.latex import summary_tex, tex

KNOWN = {"begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "multicolumn", "textbf"}
KNOWN |= {"par", "smallskip", "footnotesize", "raggedright", "ensuremath", "mu", "times"}
KNOWN |= {"textbackslash", "textasciitilde", "textasciicircum"}


def parsed(text: str) -> list[list[str]]:
    """The cells of the table, after checks of what LaTeX would refuse.

    Raises:
        AssertionError: an environment or a brace is not closed, a command is unknown, a special sign is not
            escaped, or a row has not as many cells as the table has columns.
    """
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        assert kind == "begin" or opened.pop() == name
        opened += [name] * (kind == "begin")
    assert not opened
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    assert set(re.findall(r"\\([a-zA-Z]+)", bare)) <= KNOWN
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not set("%#_~") & set(bare)
    assert bare.count("$") % 2 == 0
    assert text.isascii()
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert columns is not None
    inside = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line.removesuffix(r" \\") for line in inside.splitlines() if line.endswith(r" \\")]
    cells = [re.split(r"(?<!\\)&", row) for row in rows if not row.startswith(r"\multicolumn")]
    assert {len(row) for row in cells} == {len(columns[1])}
    return [[cell.strip() for cell in row] for row in cells]


DOCUMENT = r"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{}\end{{document}}"


def compiled(table: str, folder: Path) -> str:
    """What pdflatex says of a document with the table, after it wrote the PDF."""
    (folder / "paper.tex").write_text(DOCUMENT.format(table), encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    return done.stdout


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_makes_a_page_of_the_table(row: Row, tmp_path: Path) -> None:
    """With bold leaders, a failure, two sizes, and names of every sign that LaTeX reads as something else."""
    hostile = [made(row, name, 0.02, 3 << 20) for name in HOSTILE]
    failed = made(row, "lost", 1.0, 1).model_copy(
        update={
            "status": "oom",
            "reason": "needs 100 % of 8_GiB & more {\\x} ~^#",
            "timing": None,
            "memory": None,
        }
    )
    rows = [made(row, "a", 0.010, 9 << 20), made(row, "b", 0.020, 3 << 20), made(row, "a", 0.1, 1 << 30, 128)]
    said = compiled(summary_tex(Grouped([*rows, *hostile, failed])), tmp_path)
    assert "LaTeX Error" not in said
    assert "Undefined" not in said


HOSTILE = ["a_b", "50%", "a&b", "{x", "\\input{/etc/passwd}", "$$", "~^#", "é漢", "x]", "[x"]


def made(row: Row, model: str, latency: float, memory: int, resolution: int = 64) -> Row:
    samples = tuple(latency * (1 + shift / 1000) for shift in range(-10, 11))
    return row.model_copy(
        update={
            "key": f"{model}-{resolution}",
            "cell": row.cell.model_copy(update={"model": model, "resolution": resolution}),
            "timing": TimingRecord(samples_s=samples, warmup_s=(), verdict="stable"),
            "memory": MemoryRecord(peak_bytes=memory, baseline_bytes=0, source="test"),
        }
    )


def test_each_row_is_there_and_the_best_are_bold(row: Row) -> None:
    rows = [made(row, "a", 0.010, 9 << 20), made(row, "b", 0.020, 3 << 20), made(row, "c", 0.0101, 8 << 20)]
    heading, *cells = parsed(summary_tex(Grouped(rows)))
    assert heading[0] == "model"
    speed, memory = (next(i for i, h in enumerate(heading) if h.startswith(w)) for w in ("img/s", "memory"))
    assert [line[0] for line in cells] == ["a", "b", "c"]
    assert [line[speed].startswith(r"\textbf") for line in cells] == [True, False, True]
    assert [line[memory].startswith(r"\textbf") for line in cells] == [False, True, False]
    assert "MiB" in heading[memory]
    assert any("{[}95 \\%{]}" in word for word in heading)


def test_a_failed_cell_has_a_footnote(row: Row) -> None:
    failed = made(row, "b", 1.0, 1).model_copy(
        update={"status": "oom", "reason": "needs 100 % of 8_GiB & more", "timing": None, "memory": None}
    )
    text = summary_tex(Grouped([made(row, "a", 1.0, 1), failed]))
    _, _, cells = parsed(text)
    assert cells[0] == "b$^{1}$"
    assert r"$^{1}$ oom: needs 100 \% of 8\_GiB \& more" in text


def test_sizes_are_blocks(row: Row) -> None:
    text = summary_tex(Grouped([made(row, "a", 1.0, 1, size) for size in (64, 128)]))
    parsed(text)
    assert text.count(r"\multicolumn") == 2
    assert text.index("64 px}") < text.index("128 px}")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(row: Row, name: str) -> None:
    _, cells = parsed(summary_tex(Grouped([made(row, name, 1.0, 1)])))
    assert cells[0] == tex(name)


def test_rows_without_an_interval_lead_nothing(row: Row) -> None:
    single = made(row, "a", 1.0, 1).model_copy(
        update={"timing": TimingRecord(samples_s=(1.0,), warmup_s=(), verdict="single")}
    )
    assert "throughput_img_s" not in best_keys(Grouped([single, made(row, "b", 2.0, 1)]))
