"""One grouping of rows for tables and figures: order, names, conditions, growth."""

from longvis_bench.records import Row
from longvis_bench.report.grouping import Grouped, grouped, in_order, natural


def named(row: Row, model: str, **cell: object) -> Row:
    key = f"{model}-{sorted(cell.items())}"
    return row.model_copy(update={"key": key, "cell": row.cell.model_copy(update={"model": model, **cell})})


def test_numbers_in_names_sort_as_numbers(row: Row) -> None:
    names = ["net[w=100]", "net[w=12]", "net[w=9]", "mamba2", "mamba10"]
    rows = [named(row, name) for name in names]
    wanted = ["mamba2", "mamba10", "net[w=9]", "net[w=12]", "net[w=100]"]
    assert [found.cell.model for found in in_order(rows)] == wanted
    assert list(Grouped(rows).series) == wanted
    assert natural("") == ()
    assert sorted(["b", "1", "a2", "a10", "10"], key=natural) == ["1", "10", "a2", "a10", "b"]


def test_series_are_called_by_what_varies(row: Row) -> None:
    found = Grouped([named(row, "a", batch_size=1), named(row, "a", batch_size=16), named(row, "b")])
    assert found.varying == ["batch_size"]
    assert list(found.series) == ["a, batch 1", "a, batch 16", "b, batch 1"]
    assert found.names[found.rows[-1].key] == "b, batch 1"
    assert "batch" not in found.shared_conditions


def test_no_rows_have_nothing_in_common() -> None:
    none = Grouped([])
    assert (none.rows, none.sizes, none.varying, none.series, none.shared_conditions) == ([], [], [], {}, "")
    assert grouped(none) is none


def test_features_and_logits_are_never_one_series(row: Row) -> None:
    both = [named(row, "a"), named(row, "a", output="features")]
    found = Grouped(both)
    assert found.varying == ["output"]
    assert list(found.series) == ["a", "a, features"]
    assert "features" in Grouped(both[1:]).shared_conditions.split(", ")
    assert "classes" not in Grouped(both[1:]).shared_conditions
    assert "logits" not in Grouped(both[:1]).shared_conditions
