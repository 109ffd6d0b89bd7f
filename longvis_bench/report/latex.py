"""The summary as a LaTeX table (booktabs), for papers: one table with a block per size.

The best value of each size and those that are not separable from it are bold, by the rules of `best.py`.
The document needs the package booktabs.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench import units
from longvis_bench.report.best import best_keys
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.shown import MODEL, NUMBERS, Body, Shown, legend
from longvis_bench.resolution import Resolution
from longvis_bench.text import clean

PRINTED = ("top-1 [95 %]", "img/s", "latency [95 %]", "memory", "MACs", "params")
"""Numbers of the table, by heading."""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "µ": r"\ensuremath{\mu}",
    "×": r"\ensuremath{\times}",
    "—": "---",
    "–": "--",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "<>|\"'`[]"},
}


def summary_tex(rows: Grouped) -> str:
    """A `table` environment of all rows; cells that did not run have their status and a footnote.

    Arguments:
        rows: rows of one or several runs; a table shows one repeat of each cell.
    """
    body = Body(rows)
    wanted = [shown for name in PRINTED for shown in NUMBERS if shown.heading == name]
    columns = [MODEL, *body.conditions, *(shown for shown in wanted if body.says_something(shown))]
    failed = [index for index, row in enumerate(body.rows) if row.status != "ok"]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(body)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if s.declared.kind == 'text' else 'r' for s in columns)}}}",
        r"\toprule",
        _line([_heading(shown, body) for shown in columns]),
        *_blocks(columns, body, failed),
        r"\bottomrule",
        r"\end{tabular}",
        *(
            rf"\par\smallskip\footnotesize\raggedright $^{{{number}}}$ {_reason(body, index)}"
            for number, index in enumerate(failed, 1)
        ),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Text that LaTeX shows as it is; signs that the standard fonts do not have become `?`."""
    marked = "".join(_SPECIAL.get(sign, sign) for sign in clean(text))
    return marked.encode("ascii", "replace").decode()


def _blocks(columns: Sequence[Shown], body: Body, failed: Sequence[int]) -> list[str]:
    """The rows, with a heading for each size."""
    bold, lines = best_keys(body.shown), []
    size: Resolution | None = None
    for index, row in enumerate(body.rows):
        if row.cell.resolution != size:
            size = row.cell.resolution
            lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{{size} px}} \\"]
        cells = [_cell(shown, body, index, row.key in bold.get(shown.column, ())) for shown in columns]
        if index in failed:
            cells[0] += f"$^{{{failed.index(index) + 1}}}$"
        lines.append(_line(cells))
    return lines


def _cell(shown: Shown, body: Body, index: int, bold: bool) -> str:
    text = tex(body.texts(shown)[index])
    return rf"\textbf{{{text}}}" if bold and text != units.UNKNOWN else text


def _heading(shown: Shown, body: Body) -> str:
    heading, *unit = body.heading(shown)
    return tex(f"{heading} ({unit[0]})" if unit else heading)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _caption(body: Body) -> str:
    columns = [shown for shown in NUMBERS if shown.heading in PRINTED and body.says_something(shown)]
    parts = [
        f"Conditions: {body.shown.shared_conditions}.",
        legend(columns, body.rows),
        "Bold: the best of its size, and what is not separable from it.",
    ]
    return tex(" ".join(filter(None, parts)))


def _reason(body: Body, index: int) -> str:
    row = body.rows[index]
    return tex(": ".join(filter(None, (row.status, row.reason))))
