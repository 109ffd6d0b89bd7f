"""The page: one file whose content security policy allows the scripts and the style in it, nothing else.

The page makes no request, and no text of a row can run: texts are escaped, and a script that is not listed by
its hash does not start.  Vega interprets its expressions, so no policy needs `unsafe-eval`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from longvis_bench import units
from longvis_bench.errors import RunDirectoryError
from longvis_bench.files import PACKAGE, write_whole
from longvis_bench.records import Row
from longvis_bench.report.grouping import Grouped
from longvis_bench.report.html.chart_data import chart_rows, measures
from longvis_bench.report.html.charts import Chart, charts, ranking
from longvis_bench.report.html.markup import NOTHING, Markup, element, joined, script_json, shown
from longvis_bench.report.html.provenance import RunFile, provenance
from longvis_bench.report.html.sections import classes, conditions, memory, overhead, result, section
from longvis_bench.report.html.whole_table import WholeTable
from longvis_bench.report.plots.style import Cast, style
from longvis_bench.report.plots.write import figures
from longvis_bench.report.shown import Body
from longvis_bench.report.summary import summary_csv
from longvis_bench.runs.predictions import Answers
from longvis_bench.text import without_paths
from longvis_bench.version import __version__

ASSETS = PACKAGE / "report" / "html" / "assets"
VENDORED = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.js")
"""Others' scripts, in the order in which they load; `assets/vendored.json` has their versions and hashes."""
ENDINGS = (".html", ".htm")


def check_page_path(path: Path) -> None:
    """Check before any work that a page can be written there.

    Raises:
        RunDirectoryError: its name is not a page's, its folder does not exist, or it is a folder.
    """
    if path.suffix.lower() not in ENDINGS:
        raise RunDirectoryError(
            f"--html takes the name of a page, like {path.name or 'report'}.html, not {path}."
        )
    if path.is_dir():
        raise RunDirectoryError(f"{path} is a folder; --html takes the name of a page in it.")
    if not path.parent.is_dir():
        raise RunDirectoryError(f"the folder {path.parent} of --html {path} does not exist; make it first.")


def write_page(
    path: Path, rows: Sequence[Row], runs: Sequence[RunFile | None], answers: Sequence[Answers] = ()
) -> None:
    """Write the page of some rows.

    Arguments:
        path: see `check_page_path`.
        rows: of one or several runs; failed ones too.
        runs: the run.json of each run; None for a file of rows alone.
        answers: predictions of the rows.

    Raises:
        RunDirectoryError: the page cannot be written there.
    """
    check_page_path(path)
    text = page(rows, runs, answers)
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}.") from error


def page(rows: Sequence[Row], runs: Sequence[RunFile | None], answers: Sequence[Answers] = ()) -> str:
    """The page as text; see `write_page`.  The same rows give the same text."""
    every = Grouped([without_local_paths(row) for row in rows])
    of_key = {row.key: row for row in every.rows}
    answers = [Answers(of_key[row.key], images) for row, images in answers if row.key in of_key]
    whole = WholeTable(Body(every))
    title = _title(every)
    body = joined(
        [
            element("header", element("h1", title), _navigation()),
            element("main", *_sections(every, whole, runs, answers)),
            element("footer", element("p", f"Made by longvis {__version__} from stored rows.")),
        ]
    )
    return _document(title, body, _script_data(whole))


def without_local_paths(row: Row) -> Row:
    """The row with the paths in its texts reduced to their last part, and without its process's output."""
    stored = row.model_dump(by_alias=True)
    derived = {name: getattr(row, name) for name, field in Row.model_fields.items() if field.exclude}
    return Row.model_validate({**_without_paths(stored), "log_tail": ""}).model_copy(update=derived)


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {_without_paths(name): _without_paths(found) for name, found in value.items()}
    if isinstance(value, list | tuple):
        return value if value and isinstance(value[0], float) else [_without_paths(found) for found in value]
    return value


def _title(rows: Grouped) -> str:
    models = units.several(len({row.cell.model for row in rows.rows}), "model")
    sizes = units.listing([str(size) for size in rows.sizes], 6)
    return f"{models} at {sizes} px" if rows.rows else "no rows"


SECTIONS = {
    "result": "Result",
    "conditions": "Conditions and warnings",
    "figures": "Figures",
    "table": "All rows",
    "memory": "Memory by parts",
    "classes": "Accuracy by class",
    "overhead": "Overhead",
    "provenance": "Provenance",
    "download": "Download",
}
"""Sections of a page by name, in its order."""


def _navigation() -> Markup:
    links = [element("a", title, href=f"#{name}") for name, title in SECTIONS.items()]
    return element("nav", joined(links), aria_label="Sections")


def _sections(
    every: Grouped, whole: WholeTable, runs: Sequence[RunFile | None], answers: Sequence[Answers]
) -> list[Markup]:
    rows = whole.body.rows
    contents: dict[str, list[Markup]] = {
        "result": [result(whole.body.shown)],
        "conditions": [conditions(whole)],
        "figures": _figures(whole),
        "table": [whole.markup()],
        "memory": [memory(rows)],
        "classes": [classes(answers, every)],
        "overhead": [overhead(every.rows)],
        "provenance": [provenance(every.rows, runs)],
        "download": [_download(every)],
    }
    made = {name: section(name, title, *contents[name]) for name, title in SECTIONS.items()}
    chosen = element("div", whole.controls(), made.pop("figures"), made.pop("table"), id="chosen")
    return [made.pop("result"), made.pop("conditions"), chosen, *made.values()]


# Figures ------------------------------------------------------------------------------------------------


def _charts(whole: WholeTable) -> list[Chart]:
    rows = whole.body.shown
    accuracy = any(row.accuracy is not None for row in rows.rows)
    return [*charts(measures(rows), rows.sizes, accuracy), ranking()] if rows.rows else []


def _figures(whole: WholeTable) -> list[Markup]:
    drawn = figures(whole.body.shown)
    found = [_figure(chart, drawn) for chart in _charts(whole)]
    if not found:
        return [element("p", "There are no rows to draw.")]
    legend = element("div", "", id="legend", role="group", aria_label="Models: press to pick", hidden="")
    accuracy = (
        [] if any(row.accuracy for row in whole.body.rows) else [element("p", "No row has an accuracy.")]
    )
    return [legend, *accuracy, element("div", joined(found), class_="figures")]


def _figure(chart: Chart, drawn: Mapping[str, Figure]) -> Markup:
    """A place for the script's figure, and the drawn one for readers without scripts."""
    name = f"figure-{chart.name}"
    static = drawn.get(chart.static or "")
    parts = [
        element("h3", chart.title, id=name),
        element("div", "", class_="chart", hidden=""),
        element("noscript", _image(static, f"{chart.title}: {chart.reading}")) if static else NOTHING,
        element(
            "figcaption", element("span", chart.reading), Markup(" "), element("span", "", class_="says")
        ),
    ]
    return element("figure", joined(filter(None, parts)), data_chart=chart.name, aria_labelledby=name)


def _image(figure: Figure, words: str) -> Markup:
    """A figure as an image, so that nothing in it reaches the page."""
    file = io.BytesIO()
    with style():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "longvis-bench"})
    return element("img", src=_inline("image/svg+xml", file.getvalue()), alt=words)


def _script_data(whole: WholeTable) -> str:
    """What the script needs, as JSON."""
    cast = Cast(whole.body.shown)
    drawn = chart_rows(cast, measures(cast.rows))
    rows = [
        {
            **values,
            "row": index,
            "keys": whole.keys(index),
            "ends": whole.ends(index),
            "chosen": whole.chosen_by(index),
            "lines": whole.described(index),
        }
        for index, values in enumerate(drawn)
    ]
    specs = {chart.name: chart.spec for chart in _charts(whole)}
    return script_json({"rows": rows, "columns": whole.columns_for_script(), "charts": specs})


# Download -----------------------------------------------------------------------------------------------


def _download(rows: Grouped) -> Markup:
    """The rows as CSV, and as they are stored, without the output of the cells' processes."""
    table = summary_csv(rows).encode()
    stored = "".join(row.to_json() + "\n" for row in rows.rows)
    packed = gzip.compress(stored.encode(), mtime=0)
    links = [
        _link("rows.csv", "text/csv", table, "every column at full precision, one line per row"),
        _link(
            "cells.jsonl.gz", "application/gzip", packed, "the rows as longvis stores them, with all samples"
        ),
    ]
    said = element("p", "longvis report reads cells.jsonl once it is unpacked.")
    return joined([element("ul", *links), said])


def _link(name: str, kind: str, content: bytes, what: str) -> Markup:
    link = element("a", name, href=_inline(kind, content), download=name)
    return element("li", link, f": {what} ({units.size(len(content))})")


def _inline(kind: str, content: bytes) -> Markup:
    """A data address, which no request is made for."""
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


# The document -------------------------------------------------------------------------------------------


@cache
def asset(name: str) -> str:
    """A file of `assets/`, as text that may stand in a script or style element.

    Comments that name a source map are left out, because a browser's tools would request it.
    """
    text = (ASSETS / name).read_text(encoding="utf-8").replace("</script", "<\\/script")
    return _as_script(re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE))


def _as_script(module: str) -> str:
    """A module of Vega as a script, whose imports are read from the global `vega` and exports added to it."""
    exported = re.search(r"^export \{(.*)\};$", module, re.MULTILINE)
    if exported is None:
        return module
    names = [part.split(" as ") for part in exported[1].split(",")]
    given = ", ".join(f"{as_[-1].strip()}: {as_[0].strip()}" for as_ in names)
    body = re.sub(r"^import (\{.*\}) from '.*';$", r"const \1 = vega;", module, flags=re.MULTILINE)
    return f"(() => {{\n{body.replace(exported[0], f'Object.assign(vega, {{ {given} }});')}\n}})();"


def _document(title: str, body: Markup, data: str) -> str:
    sheet, scripts = asset("page.css"), [*map(asset, VENDORED), asset("page.js")]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(sheet)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"longvis {__version__}"),
        element("link", rel="icon", href="data:,"),
        element("title", f"longvis: {shown(title)}"),
        Markup(f"<style>{sheet}</style>"),
    ]
    ends = [Markup(f'<script type="application/json" id="data">{data}</script>')]
    ends += [Markup(f"<script>{script}</script>") for script in scripts]
    whole = element("html", element("head", joined(head)), element("body", body, joined(ends)), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
