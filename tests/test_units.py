"""Formatters: the examples people read, the edges between prefixes, and no value that breaks them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvis_bench import units
from longvis_bench.resolution import Rectangle

numbers = st.floats(-1e18, 1e18, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1234.5, "1234"),
        (9.999, "10.0"),
        (0.9996, "1.00"),
        (-0.5, "-0.500"),
        (99.95, "100"),
        (1e-9, "0.00000000100"),
        (12, "12.0"),
        (100000, "100000"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (28_589_128, "28.6 M"),
        (999_499, "999 k"),
        (999_999, "1.00 M"),
        (999_999_999, "1.00 G"),
        (1e15, "1000 T"),
        (-1500, "-1.50 k"),
        (0.25, "0.250"),
    ],
)
def test_count(value: float | None, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.0123, "12.3 ms"),
        (75, "1 min 15 s"),
        (0.9999, "1.00 s"),
        (59.4, "59.4 s"),
        (59.99, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (9000, "2 h 30 min"),
        (2e-6, "2.00 µs"),
        (2e-8, "0.0200 µs"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1_610_612_736, "1.50 GiB"),
        ((1 << 20) - 1, "1.00 MiB"),
        (1000 << 10, "1000 KiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert units.size(value) == text


def test_the_rest() -> None:
    assert units.rate(12.345) == "12.3"
    assert units.percent(0.9104) == "91.0 %"
    assert (units.rate(None), units.percent(None), units.plain(None), units.plain("")) == ("-",) * 4
    assert units.plain(0) == "0"
    assert [units.several(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert units.listing(["a", "b", "c", "d"], 3) == "a, b, c and 1 more"
    assert units.listing(["a", "b"], 3) == "a, b"
    assert units.listing([], 3) == ""


@pytest.mark.parametrize("formatter", [units.count, units.seconds, units.size, units.rate, units.percent])
@given(value=st.none() | numbers)
def test_every_formatter_takes_every_number(
    formatter: Callable[[float | None], str], value: float | None
) -> None:
    text = formatter(value)
    assert text
    assert (text == "-") == (value is None)
    assert "e" not in text.replace("e+", "!")


@given(st.floats(1e-6, 1e15))
def test_significant_keeps_three_digits(value: float) -> None:
    assert float(units.significant(value)) == pytest.approx(value, rel=5.001e-3)


@given(st.floats(1e3, 1e15, exclude_max=True))
def test_a_prefix_never_stands_before_1000_or_more(value: float) -> None:
    number, unit = units.count(value).split(" ")
    assert float(number) < 1000 or unit == "T"


def test_a_column_shares_the_unit_of_its_middle_value() -> None:
    assert units.shared_scale([0.012, 0.2, 3.0], units.SECONDS) == (1e-3, "ms")
    assert units.shared_scale([2e9, 3e11, 2e12], units.COUNTS) == (1e9, "G")
    assert units.shared_scale([1e-6, 1.0, 1.0], units.SECONDS) is None
    assert units.shared_scale([], units.SECONDS) is None
    assert units.shared_scale([], units.SHARES) == (0.01, "%")
    assert units.shared_scale([0, 0.5], units.SHARES) == (0.01, "%")


@given(st.lists(st.floats(0, 1e15), max_size=20), st.sampled_from([units.COUNTS, units.SIZES, units.SECONDS]))
def test_a_shared_scale_hides_nothing(values: list[float], scales: tuple[units.Scale, ...]) -> None:
    scale = units.shared_scale(values, scales)
    if scale is not None:
        assert all(float(units.significant(v / scale.factor)) > 0 for v in values if v)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.read_seconds, "90", 90.0),
        (units.read_seconds, "2m", 120.0),
        (units.read_seconds, "1h 30min", 5400.0),
        (units.read_seconds, "1h30m", 5400.0),
        (units.read_seconds, "500ms", 0.5),
        (units.read_seconds, ".5", 0.5),
        (units.read_share, "2%", 0.02),
        (units.read_share, " 2 % ", 0.02),
        (units.read_share, "0.02", 0.02),
        (units.read_whole, "1_000", 1000),
        (units.read_pixels, "2k", 2048),
        (units.read_pixels, "1024 px", 1024),
        (units.read_pixels, "2560x1920", Rectangle(height=1920, width=2560)),
        (units.read_pixels, "1k × 2k px", Rectangle(height=2048, width=1024)),
        (units.read_pixels, "1024x1024", 1024),
    ],
)
def test_text_with_a_unit_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (units.read_seconds, ("", "-1", "2x", "inf", "nan", "1 2", "1e3", "2m later")),
        (units.read_share, ("", "x", "2%%", "inf", "nan", "2% or so")),
        (units.read_whole, ("", "0", "-1", "1.5", "1e3", "²", "9" * 5000)),
        (units.read_pixels, ("", "0", "0k", "1.5k", "big", "1024x", "x3", "1x2x3", "0x8", "8*8")),
    ],
)
def test_text_that_is_no_number_is_refused(read: Callable[[str], float], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r"^(a|whole) "):
            read(text)
