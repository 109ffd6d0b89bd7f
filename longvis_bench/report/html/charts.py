"""The figures of a page as Vega-Lite specifications, which are plain JSON without any text of a row.

`page.js` gives them their rows, and marks in these what follows from the choice of rows: `front_<cost>`, the
Pareto front of accuracy against a cost, and `lost_<cost>`, the place of a row without a value.  It sets
`picked`, the series that stand out, and `top`, the upper end of a cost's axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from longvis_bench.report.html.chart_data import Measure, on_axis
from longvis_bench.report.plots.style import GREY, INK, PALE
from longvis_bench.report.plots.write import AGAINST
from longvis_bench.resolution import Resolution, axis_in_words

Spec = dict[str, Any]

OVER_SIZE = ("latency", "memory")
"""Costs that are drawn against the size."""
RANKED = "ranked"
_HIDDEN = 0.12
"""Opacity of what is not picked."""
_OWN = {"type": "nominal", "scale": None}
"""The row holds the colour or the outline itself."""
_CROSS = "M-1,-1L1,1M1,-1L-1,1"
_CONFIG: Spec = {
    "font": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
    "background": "white",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "domainColor": GREY,
        "tickColor": GREY,
        "gridColor": PALE,
        "labelOverlap": True,
    },
    "aria": True,
}


class Chart(NamedTuple):
    """A figure."""

    name: str
    title: str
    reading: str
    """How to read it."""
    static: str | None
    """Name of the figure in plots/ that shows the same; None if there is none."""
    spec: Spec


def charts(known: dict[str, Measure], sizes: Sequence[Resolution], accuracy: bool) -> list[Chart]:
    """The figures of rows, in the page's order.

    Arguments:
        known: costs that some row has.
        sizes: resolutions of the rows; of a single one the series are listed in place of an axis of sizes.
        accuracy: whether some row has an accuracy.
    """
    against = [_accuracy(known[name]) for name in AGAINST if name in known] if accuracy else []
    drawn = [known[name] for name in OVER_SIZE if name in known]
    return [
        *against,
        *(_over_size(one, sizes) if len(sizes) > 1 else _listed(one, sizes[0]) for one in drawn),
    ]


def ranking() -> Chart:
    """The column that the table is sorted by, in the table's order."""
    bars = {"type": "bar", "height": 12, "aria": False}
    spec = _spec(
        "The sorted column of the table, one bar per row, in the table's order.",
        {"step": 20},
        [
            _layer(bars, {"color": {"field": "colour", **_OWN}, "x": _value("value", "")}),
            _layer(_rule(), {"x": _value("low", ""), "x2": {"field": "high"}}, "isValid(datum.low)"),
            _layer(
                {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "color": INK, "aria": False},
                {"x": _value("edge", ""), "text": {"field": "words", "type": "nominal"}},
            ),
        ],
        {"y": {"field": "name", "type": "nominal", "sort": {"field": "rank", "op": "min"}, "axis": _NAMES}},
    )
    spec["padding"] = {"left": 5, "top": 5, "bottom": 5, "right": 48}  # for the last bar's number
    return Chart(RANKED, "The table's order", "One bar per row of the table, in its order.", None, spec)


_NAMES = {"title": None, "domain": False, "ticks": False, "labelLimit": 240, "labelOverlap": False}


def _accuracy(measure: Measure) -> Chart:
    name, cost = measure.name, measure.cost
    front = f"datum.front_{name}"
    spec = _spec(
        f"Top-1 accuracy against {cost.against}, one mark per row.",
        300,
        [
            _layer(
                {
                    "type": "line",
                    "interpolate": "step-before" if cost.better_up else "step-after",
                    "strokeDash": [4, 3],
                    "color": GREY,
                    "strokeWidth": 1,
                    "aria": False,
                },
                {},
                front,
            ),
            _layer(_rule(), {"y": _top1("top1_low"), "y2": {"field": "top1_high"}, **_coloured()}),
            _layer(_points(), {**_coloured(), **_filled(front)}),
            _layer(
                {"type": "text", "dy": -11, "fontSize": 11, "limit": 190, "color": INK, "aria": False},
                {"text": {"field": f"front_{name}_words", "type": "nominal"}},
                front,
            ),
        ],
        {"x": _log(measure), "y": _top1("top1")},
        f"isValid(datum.top1) && isValid(datum.{name})",
    )
    better = "right" if cost.better_up else "left"
    reading = (
        f"Up and {better} is better. Filled marks and the dashed line: the Pareto front of the rows shown. "
        "Vertical bars: 95 % intervals."
    )
    return Chart(f"accuracy-{name}", f"Accuracy against {cost.against}", reading, f"accuracy-{name}", spec)


def _over_size(measure: Measure, sizes: Sequence[Resolution]) -> Chart:
    name, cost = measure.name, measure.cost
    drawn = f"isValid(datum.{name})"
    layers = [
        _layer({"type": "line", "strokeWidth": 1.6, "aria": False}, {**_coloured(), **_detail()}, drawn),
        _layer(_points(), {**_coloured(), **_filled("true")}, drawn),
        *_lost(name),
    ]
    if cost.interval:
        ends = {"y": _log(measure, f"{name}_low"), "y2": {"field": f"{name}_high"}, **_coloured()}
        layers.insert(1, _layer(_rule(), ends, f"isValid(datum.{name}_low)"))
    spec = _spec(
        f"{cost.title} against the image size, one mark per row and one line per model.",
        320,
        layers,
        {"x": _sizes(sizes), "y": _with_room(_log(measure))},
    )
    reading = "Lower is better. " + ("Vertical bars: 95 % intervals. " if cost.interval else "")
    reading += "× at the upper edge: a cell without a value, with its status."
    return Chart(f"{name}-size", f"{cost.title} against size", reading, name, spec)


def _listed(measure: Measure, size: Resolution) -> Chart:
    """Series by their value at the only size."""
    name, cost = measure.name, measure.cost
    drawn = f"isValid(datum.{name})"
    layers = [_layer(_points(), {**_coloured(), **_filled("true")}, drawn)]
    if cost.interval:
        ends = {"x": _log(measure, f"{name}_low"), "x2": {"field": f"{name}_high"}, **_coloured()}
        layers.insert(0, _layer(_rule(), ends, f"isValid(datum.{name}_low)"))
    order = {"field": name, "op": "median", "order": "ascending"}
    named = {"field": "series", "type": "nominal", "sort": order, "axis": _NAMES}
    spec = _spec(
        f"{cost.title} at {size} px, one mark per row.",
        {"step": 22},
        layers,
        {"x": _log(measure), "y": named},
    )
    reading = "Left is better. " + ("Horizontal bars: 95 % intervals. " if cost.interval else "")
    reading += "A line without a mark: a cell without a value; the table has the reason."
    return Chart(f"{name}-size", f"{cost.title} at {size} px", reading, name, spec)


def _lost(name: str) -> list[Spec]:
    """Crosses at the upper edge for rows without a value, each with its model and its status."""
    place = {"field": f"lost_{name}", "type": "quantitative", "scale": None, "axis": None}
    lost = f"isValid(datum.lost_{name})"
    mark = {"type": "point", "shape": _CROSS, "size": 70, "strokeWidth": 2, "filled": False, "aria": False}
    words = {"type": "text", "fontSize": 11, "limit": 150, "color": INK, "aria": False}
    return [
        _layer(mark, {"y": place, **_coloured(), "tooltip": {"field": "row", "type": "nominal"}}, lost),
        *(
            _layer(
                {**words, "align": align, "dx": 9 if align == "left" else -9},
                {"y": place, "text": {"field": "lost_words", "type": "nominal"}},
                f"{lost} && {'' if align == 'right' else '!'}datum.last_size",
            )
            for align in ("left", "right")
        ),
    ]


def _spec(description: str, height: Any, layers: list[Spec], encoding: Spec, keep: str | None = None) -> Spec:
    return {
        "description": description,
        "data": {"name": "rows"},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "picked", "value": []}, {"name": "top", "value": 1}],
        "transform": [{"filter": keep}] if keep else [],
        "encoding": encoding,
        "layer": layers,
        "config": _CONFIG,
    }


def _layer(mark: Spec, encoding: Spec, keep: str | None = None) -> Spec:
    return {**({"transform": [{"filter": keep}]} if keep else {}), "mark": mark, "encoding": encoding}


def _points() -> Spec:
    return {"type": "point", "size": 110, "strokeWidth": 1.5, "aria": False}


def _rule() -> Spec:
    return {"type": "rule", "strokeWidth": 1.2, "aria": False}


def _detail() -> Spec:
    return {"detail": {"field": "series", "type": "nominal"}}


def _coloured() -> Spec:
    """The series' colour, and paler where another series is picked."""
    return {
        "stroke": {"field": "colour", **_OWN},
        "opacity": {
            "condition": {"test": "!length(picked) || indexof(picked, datum.series) >= 0", "value": 0.95},
            "value": _HIDDEN,
        },
    }


def _filled(test: str) -> Spec:
    """The series' outline, filled with its colour where a test holds; a tooltip names the row."""
    return {
        "shape": {"field": "shape", **_OWN},
        "fill": {"condition": {"test": test, "field": "colour", **_OWN}, "value": "white"},
        "tooltip": {"field": "row", "type": "nominal"},
    }


def _value(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": True}}


def _top1(field: str) -> Spec:
    title = "top-1 accuracy (%)"
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}}


def _log(measure: Measure, field: str = "") -> Spec:
    return {
        "field": field or measure.name,
        "type": "quantitative",
        "title": f"{measure.title}, log scale",
        "scale": {"type": "log", "nice": False, "padding": 30},
        "axis": {"format": ".3~r", "tickCount": 6},
    }


def _with_room(axis: Spec) -> Spec:
    """The axis with room above its values for the crosses of rows without one."""
    return {**axis, "scale": {**axis["scale"], "domainMax": {"expr": "top"}}}


def _sizes(sizes: Sequence[Resolution]) -> Spec:
    return {
        "field": "size",
        "type": "quantitative",
        "title": f"image size, {axis_in_words(sizes)}, log scale",
        "scale": {"type": "log", "base": 2, "padding": 24, "nice": False},
        "axis": {"format": "d", "grid": False, "values": [on_axis(size) for size in sizes]},
    }
