"""Figures: all words are inside and apart, failures are marks, and the same rows give the same bytes."""

import math
import struct
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from longvis_bench.records import EnergyRecord, Row
from longvis_bench.report.columns import BY_NAME
from longvis_bench.report.grouping import grouped
from longvis_bench.report.plots import layout
from longvis_bench.report.plots import style as canvas
from longvis_bench.report.plots import write as plots
from longvis_bench.report.plots.choice import front, points
from longvis_bench.resolution import Rectangle
from longvis_bench.runs.directory import read_rows

GOLDEN = Path(__file__).parents[2] / "golden_tables" / "rows.jsonl"
ROWS = read_rows(GOLDEN)
NAMES = {
    *("throughput", "latency", "memory", "macs"),
    *("accuracy-throughput", "accuracy-memory", "accuracy-macs"),
}


def changed(row: Row, **cell: object) -> Row:
    return row.model_copy(update={"cell": row.cell.model_copy(update=cell)})


LONG = "timm:vit_small_patch16_dinov3.lvd1689m[img_size=1024]"
RUNS = {
    "seven models": ROWS,
    "two models": [row for row in ROWS if row.cell.family in ("atlas", "vit")],
    "one size": [row for row in ROWS if row.cell.resolution == 256],
    "one size without accuracy": [row for row in ROWS if row.cell.resolution == 1024],
    "one row": ROWS[:1],
    "one oom": ROWS[-1:],
    "no rows": [],
    "long names": [changed(row, model=LONG, family="x") if row.cell.family == "vit" else row for row in ROWS],
    "two batch sizes": [*ROWS, *(changed(row, batch_size=8) for row in ROWS)],
    "rounds": [*ROWS, *(changed(row, round=1) for row in ROWS)],
    "rectangles": [
        *ROWS,
        *(changed(row, resolution=Rectangle(320, 512)) for row in ROWS if row.cell.resolution == 256),
    ],
}


def texts(figure: Figure) -> list[Text]:
    found = figure.findobj(Text)
    return [
        text for text in found if isinstance(text, Text) and text.get_text().strip() and text.get_visible()
    ]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


@pytest.mark.parametrize("run", RUNS)
def test_all_text_is_inside_of_every_figure(run: str) -> None:
    figures = plots.figures(RUNS[run])
    lacks_values = run in ("no rows", "one oom", "one size without accuracy")
    assert set(figures) < NAMES if lacks_values else set(figures) == NAMES
    for name, figure in figures.items():
        assert cut_off(figure) == [], name


def cut_off(figure: Figure) -> list[str]:
    """Texts that are not inside of the figure."""
    width, height = figure.bbox.width, figure.bbox.height
    figure.canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    return [
        text
        for text, box in boxes
        if not (box.x0 > -3 and box.y0 > -3 and box.x1 < width + 3 and box.y1 < height + 3)
    ]


@pytest.mark.parametrize("eighth", range(8))
def test_a_tick_at_the_right_edge_is_not_cut_off(eighth: int) -> None:
    """Memory at 256 px ends near a power of two at one of these factors."""
    rows = []
    for row in RUNS["one size"]:
        assert row.memory is not None
        peak = int(row.memory.peak_bytes * 2 ** (eighth / 8))
        rows.append(row.model_copy(update={"memory": row.memory.model_copy(update={"peak_bytes": peak})}))
    assert cut_off(plots.figures(rows)["accuracy-memory"]) == []


@pytest.mark.parametrize("run", ["seven models", "two models", "one size", "one size without accuracy"])
def test_no_words_lie_on_others(run: str) -> None:
    for name, figure in plots.figures(RUNS[run]).items():
        figure.canvas.draw()
        boxes = [(text.get_text(), text.get_window_extent().shrunk(0.8, 0.7)) for text in texts(figure)]
        for (one, box), (other, other_box) in combinations(boxes, 2):
            assert not box.overlaps(other_box), f"{name}: {one!r} and {other!r} overlap"


@pytest.mark.parametrize("name", ["throughput", "latency", "memory"])
def test_failures_are_marks_with_a_word(name: str) -> None:
    shown = words(plots.figures(ROWS)[name])
    for failure in ("vit-n: oom", "longvit-n: timeout", "swin-n: skipped", "fastervit-n: invalid"):
        assert failure in shown
    shown = words(plots.figures(RUNS["one size without accuracy"])[name])
    assert {"oom", "timeout", "skipped"} <= set(shown.splitlines())


def test_a_missing_value_is_a_mark_too() -> None:
    rows = [row.model_copy(update={"memory": None}) if row.key == "vit-512" else row for row in ROWS]
    assert "vit-n: no value" in words(plots.figures(rows)["memory"])


def test_curves_of_latency_and_throughput_have_their_intervals() -> None:
    """A bar from the low to the high end of each row that has an interval; none for memory."""
    for name, ends in {
        "latency": ("latency_low_s", "latency_high_s"),
        "throughput": ("throughput_low_img_s", "throughput_high_img_s"),
        "memory": None,
    }.items():
        (axes,) = plots.figures(ROWS)[name].axes
        bars = {
            tuple(np.asarray(line.get_ydata()).tolist()) for line in axes.lines if line.get_marker() == "_"
        }
        rows = [row for row in ROWS if ends and row.status == "ok"]
        wanted = {tuple(BY_NAME[end].value(row) for end in ends or ()) for row in rows}
        wanted = {pair for pair in wanted if None not in pair}
        assert bars == wanted, name
        assert bool(bars) == (name != "memory")


def test_labels_carry_the_exponents() -> None:
    figures = plots.figures(ROWS)
    assert "vit-n R³·⁶" in words(figures["latency"])
    assert "vit-n R⁻³·⁶" in words(figures["throughput"])
    assert "convnext-n R²·⁰" in words(figures["macs"])


def test_accuracy_names_its_front_and_what_is_not_there() -> None:
    shown = words(plots.figures(ROWS)["accuracy-throughput"])
    assert "256 px" in shown
    assert "No accuracy at 512, 1024 px" in shown
    lost = [row.model_copy(update={"accuracy": None}) if row.key == "vit-256" else row for row in ROWS]
    assert "× without top-1: vit-n" in words(plots.figures(lost)["accuracy-macs"])


def test_a_disturbed_latency_is_on_no_front() -> None:
    known = [row for row in ROWS if row.accuracy and row.timing]
    assert best(known, "throughput_img_s", better_up=True)
    shaken = [disturbed(row) for row in known]
    assert not best(shaken, "throughput_img_s", better_up=True)
    assert best(shaken, "macs", better_up=False)


def best(rows: list[Row], column: str, *, better_up: bool) -> list[str]:
    alone = [(row, grouped([row])) for row in rows]
    found = {
        row.key: points(one, label, column)[row.cell.resolution] for row, one in alone for label in one.series
    }
    return front(found, better_up=better_up)


def disturbed(row: Row) -> Row:
    assert row.timing is not None
    return row.model_copy(update={"timing": row.timing.model_copy(update={"verdict": "disturbed"})})


@pytest.mark.parametrize(
    ("run", "drawn"),
    [
        ("no rows", set()),
        ("one oom", {"macs"}),
        ("one size without accuracy", {"throughput", "latency", "memory", "macs"}),
    ],
)
def test_what_has_no_value_in_any_row_has_no_figure(run: str, drawn: set[str]) -> None:
    assert set(plots.figures(RUNS[run])) == drawn


def test_what_was_not_asked_for_has_no_figure_and_leaves_none_behind(tmp_path: Path) -> None:
    rows = [changed(row, metrics=("count",)).model_copy(update={"timing": None}) for row in ROWS]
    plots.write_plots(ROWS[:1], tmp_path)
    (tmp_path / "mine.png").write_bytes(b"")
    assert set(plots.figures(rows)) == {"macs"}
    plots.write_plots(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"macs.png", "macs.svg", "macs.pdf", "mine.png"}


def test_both_axes_say_what_they_show() -> None:
    for name, figure in plots.figures(ROWS).items():
        axes = figure.axes[0]
        assert "log scale" in axes.get_xlabel()
        assert axes.get_ylabel(), name
    ticks = [text.get_text() for text in plots.figures(ROWS)["latency"].axes[0].get_xticklabels()]
    assert ticks == ["256 px", "512 px", "1024 px"]


def test_energy_has_its_figures_where_it_is_known() -> None:
    """The cheapest accurate rows are on the front; rows without energy are none of its points."""
    measured = EnergyRecord(joules=1.0, seconds=2.0, images=10, source="RAPL, 1 package")
    known = [
        row.model_copy(update={"energy": measured.model_copy(update={"images": 10 * (index + 1)})})
        for index, row in enumerate(ROWS)
        if row.timing is not None
    ]
    assert not {name for name in plots.figures(ROWS) if "energy" in name}
    figures = plots.figures(known)
    assert set(figures) == NAMES | {"energy", "accuracy-energy"}
    assert "energy of one image" in words(figures["accuracy-energy"])
    assert "Pareto front" in words(figures["accuracy-energy"])
    assert [cut_off(figures[name]) for name in ("energy", "accuracy-energy")] == [[], []]


def test_no_name_hides_an_interval() -> None:
    axes = plots.figures(ROWS)["accuracy-macs"].axes[0]
    bars = [found.get_zorder() for found in axes.collections]
    assert min(bars) > max(text.get_zorder() for text in axes.texts)


# More than can be told apart ----------------------------------------------------------------------------


def many(number: int, sizes: tuple[int, ...] = (256, 512)) -> list[Row]:
    """So many models, each dearer than the one before; every third is no better than a cheaper one."""
    rows = []
    for n in range(number):
        for size in sizes:
            row = next(row for row in ROWS if row.cell.resolution == size)
            assert row.timing is not None
            factor = 1 + n / 10
            timing = row.timing.model_copy(
                update={"samples_s": tuple(factor * s for s in row.timing.samples_s)}
            )
            accuracy = row.accuracy and row.accuracy.model_copy(
                update={"correct_top1": 20 + (n % 100) * (n % 3 > 0)}
            )
            more = {"timing": timing, "accuracy": accuracy, "key": f"{n}-{size}"}
            rows.append(changed(row, model=f"net-{n}", family=f"f{n % 30}").model_copy(update=more))
    return rows


def test_of_many_series_the_front_is_shown_and_the_rest_is_said() -> None:
    rows = many(120)
    figures = plots.figures(rows)
    for name, figure in figures.items():
        assert figure.get_figheight() < 16, name
    shown = words(figures["latency"])
    assert f"{canvas.MOST} of 120 series: the Pareto front and the best at 512 px" in shown
    assert "net-0 R" in shown, "the fastest is on the front"
    assert "net-117 R" not in shown, "the slowest, of the lowest accuracy"
    assert "other models" in words(figures["accuracy-throughput"])


def test_one_size_of_many_series_too() -> None:
    figure = plots.figures(many(120, (256,)))["latency"]
    assert figure.get_figheight() < 12
    assert f"{canvas.MOST} of 120 series" in words(figure)


# Looks --------------------------------------------------------------------------------------------------


def test_a_family_looks_the_same_in_every_run_and_no_two_alike() -> None:
    all_looks, two = canvas.looks(ROWS), canvas.looks(RUNS["two models"])
    assert {label: all_looks[label] for label in two} == two
    assert (
        len({look.colour for look in all_looks.values()})
        == len({look.marker for look in all_looks.values()})
        == 7
    )


def test_variants_of_a_family_differ_in_all_and_strangers_get_a_look() -> None:
    rows = [changed(ROWS[0], model=f"atlas-{name}") for name in "nsb"]
    for others in ([], [ROWS[1]]):  # where another family is there, variants take shades of their own colour
        looks = [look for label, look in canvas.looks([*rows, *others]).items() if label.startswith("atlas")]
        assert all(len({look[part] for look in looks}) == 3 for part in range(3))
        assert canvas.Look(*canvas.family_marks()["atlas"], "-") in looks
    strangers = [changed(ROWS[0], model=f"m{i}", family=f"f{i}") for i in range(20)]
    assert len(canvas.looks(strangers)) == 20


def test_thirty_variants_of_one_file_are_told_apart() -> None:
    rows = [
        changed(row, model=f"net.py:build[w={4 * n}]", family="net") for n in range(30) for row in ROWS[:1]
    ]
    cast = canvas.Cast(rows)
    assert len({(look.colour, look.marker) for look in cast.looks.values()}) == 30
    assert [cast.name(label) for label in cast.rows.series] == [f"w={4 * n}" for n in range(30)]
    assert "all names begin with net.py:build[" in words(plots.figures(rows)["latency"])


@pytest.mark.parametrize(
    ("labels", "beginning", "first"),
    [
        (["timm:vit_s", "timm:vit_b", "timm:swin"], "timm:", "vit_s"),
        (["a/b.py:f[w=1], batch 1", "a/b.py:f[w=1], batch 8", "a/b.py:f[w=2]"], "a/b.py:f[", "w=1, batch 1"),
        (["vit-n", "vit-s", "vit-b"], "", "vit-n"),
        (["timm:a", "timm:b"], "", "timm:a"),
        (["timm:", "timm:a", "timm:b"], "timm:", "timm:"),
        ([], "", None),
    ],
)
def test_common_beginnings_are_said_once(labels: list[str], beginning: str, first: str | None) -> None:
    found, names = canvas.shortened(labels)
    assert found == beginning
    assert names.get(labels[0] if labels else "") == first


def test_colours_are_seen_on_white() -> None:
    own = [mark.colour for mark in canvas.family_marks().values()]
    shades = [canvas.shade(colour, n) for colour in own for n in range(3)]
    assert len(set(shades)) == len(shades)
    for colour in (*own, *canvas.OTHER_COLOURS, *shades):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.45


# Files --------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    written = plots.write_plots(ROWS, tmp_path / "a" / "plots")
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in NAMES for kind in ("png", "svg", "pdf")
    }
    width, height = struct.unpack(">II", (tmp_path / "a/plots/latency.png").read_bytes()[16:24])
    assert width == round(canvas.WIDTH * 200)
    assert height > 600
    again = plots.write_plots(ROWS, tmp_path / "b")
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), f"{one.name} is not deterministic"
        assert str(tmp_path).encode() not in one.read_bytes()
    svg = (tmp_path / "b" / "latency.svg").read_text("utf-8")
    assert "dc:date" not in svg
    assert ">vit-n R³·⁶</text>" in svg


HOSTILE = [
    "<script>alert(1)</script>",
    "a&b",
    "$x^2$",
    "a\nb",
    "\x1b[31m",
    "\u202e模型\U0001f600",
    "]]>",
    '"><x y="',
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "KINDS", ("svg",))
    rows = [
        changed(row, model=name, family=name) if row.cell.family == "vit" else row
        for row in RUNS["two models"]
    ]
    written = plots.write_plots(rows, tmp_path)
    assert len(written) == len(NAMES)
    for path in written:
        tags = {
            element.tag.rpartition("}")[2]
            for element in ElementTree.fromstring(path.read_text("utf-8")).iter()
        }
        assert not tags & {"script", "x", "foreignObject", "image"}


def test_drawing_changes_nothing_global() -> None:
    before = dict(matplotlib.rcParams)
    plots.figures(ROWS[:2])
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, longvis_bench.report.plots.write as p; p.figures([]);"
        " assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Layout -------------------------------------------------------------------------------------------------

places = st.lists(st.floats(-1, 2), max_size=30)


@given(places, st.floats(0, 0.3))
def test_spread_keeps_order_distance_and_bounds(wanted: list[float], gap: float) -> None:
    found = layout.spread(wanted, gap, 0.0, 1.0)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in found)
    room = min(gap, 1 / max(1, len(wanted) - 1))
    assert all(b - a >= room - 1e-9 for a, b in pairwise(sorted(found)))
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert [found[i] for i in order] == sorted(found)


def test_spread_moves_nothing_without_need_and_shares_where_it_must() -> None:
    assert layout.spread([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    assert layout.spread([0.5, 0.5], 0.2, 0, 1) == pytest.approx([0.4, 0.6])
    assert layout.spread([1.0, 1.0, 1.0], 0.2, 0, 1) == pytest.approx([0.6, 0.8, 1.0])
    assert layout.spread([], 0.2, 0, 1) == []


@given(st.floats(1e-6, 1e12), st.floats(1.26, 1e9), st.booleans())
def test_ticks_are_inside_and_apart(low: float, ratio: float, binary: bool) -> None:
    ticks = layout.round_numbers(low, low * ratio, binary=binary)
    assert 2 <= len(ticks) <= 11
    assert all(low * (1 - 1e-9) <= tick <= low * ratio * (1 + 1e-9) for tick in ticks)
    assert all(math.log(b / a) >= 0.099 * math.log(ratio) for a, b in pairwise(ticks))


@pytest.mark.parametrize(
    ("low", "high", "binary", "ticks"),
    [
        (0.004, 0.3, False, [0.01, 0.03, 0.1, 0.3]),
        (5, 15, False, [6, 8, 10, 12, 14]),
        (20 << 20, 300 << 20, True, [32 << 20, 64 << 20, 128 << 20, 256 << 20]),
        (2e6, 3e11, False, [1e7, 1e8, 1e9, 1e10, 1e11]),
    ],
)
def test_ticks_are_round(low: float, high: float, binary: bool, ticks: list[float]) -> None:
    assert layout.round_numbers(low, high, binary=binary) == pytest.approx(ticks)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: (min(ends), max(ends))), max_size=20
    )
)
def test_packed_spans_do_not_touch(spans: list[tuple[float, float]]) -> None:
    rows = layout.pack(spans)
    for (one, row), (other, other_row) in combinations(zip(spans, rows, strict=True), 2):
        assert row != other_row or one[1] < other[0] or other[1] < one[0]


def test_the_freest_place_is_taken() -> None:
    frame, taken = layout.Box(0, 0, 10, 10), layout.Box(5, 5, 6, 6)
    over, outside, free = layout.Box(5, 5, 7, 6), layout.Box(9, 9, 11, 10), layout.Box(1, 1, 3, 2)
    assert layout.best_place([over, outside, free], frame, [taken], []) == 2
    assert layout.best_place([free, free], frame, [], []) == 0
