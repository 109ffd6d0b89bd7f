"""docs/claims.md: parts of it are made again from the counts, in its slow form all of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from longvis_bench.published.numbers import claims_of
from longvis_bench.published.verdicts import Checked, check
from longvis_bench.registry.registry import Registry

ROOT = Path(__file__).parents[2]
if not (ROOT / "scripts").is_dir():
    pytest.skip("the tests run apart from the source tree", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))

import claims_findings  # noqa: E402
import claims_page  # noqa: E402

QUICK = ("swin-t", "vit-t", "vit-s", "mila-t", "efficientvit-l1")
ASKED = "run: python scripts/claims_page.py"


def page() -> str:
    return claims_page.PAGE.read_text(encoding="utf-8")


@cache
def part() -> claims_page.Page:
    registry = Registry(working_dir=ROOT)
    return claims_page.Page(check(registry, QUICK), registry)


def lines(text: str) -> Iterator[str]:
    """The lines of a table, without its head."""
    yield from text.splitlines()[2:]


def section(heading: str) -> str:
    return page().split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]


def test_lines_of_a_few_models_are_as_counted() -> None:
    written = section("All parameters and MACs").splitlines()
    made = list(lines(part().counts()))
    assert len(made) >= 20
    assert set(made) <= set(written), ASKED
    names = {line.split(" | ")[0] for line in made}
    assert [line for line in written if line.split(" | ")[0] in names] == made, ASKED


def test_every_number_is_in_the_page_once() -> None:
    claims = claims_of(Registry(working_dir=ROOT))
    counted = [claim for claim in claims if claim.quantity in ("params", "MACs")]
    assert len(list(lines(section("All parameters and MACs").strip()))) == len(counted), ASKED
    missing = [int(n) for n in re.findall(r"\| (\d+) \|$", section("Not comparable without a run"), re.M)]
    totals = re.search(r"^(\d+) published numbers of \d+ families: .*, (\d+) not comparable\.$", page(), re.M)
    assert totals is not None
    assert int(totals[1]) == len(claims), ASKED
    assert sum(missing) == int(totals[2])


def test_the_tables_of_presets_are_as_generated() -> None:
    assert part().presets() in page(), ASKED


@pytest.mark.parametrize(
    "finding",
    [
        claims_findings.atlas_contradicts_itself,
        claims_findings.atlas_windows,
        claims_findings.convnext_against_swin,
        claims_findings.runtimes_over_the_cap,
        claims_findings.order_depends_on_epochs,
    ],
)
def test_findings_that_need_published_numbers_hold(finding: object) -> None:
    """Their premises are asserted in them; their words stand in the page."""
    registry = Registry(working_dir=ROOT)
    facts = claims_findings.Facts(uncounted(), registry)
    said = " ".join(finding(facts).split())  # type: ignore[operator]
    assert said in " ".join(page().split()), ASKED


@cache
def uncounted() -> list[Checked]:
    registry = Registry(working_dir=ROOT)
    return [Checked(claim, "not comparable") for claim in claims_of(registry)]


def test_windows_in_raster_order_are_those_of_the_authors_code() -> None:
    """By hand: of 8 x 8 windows over 2 x 2, rows 0 and 1 go to the first one, which has columns 0 to 3."""
    assert claims_findings.mispaired(1024) == 0
    assert claims_findings.mispaired(2048) == 0.5
    assert claims_findings.mispaired(4096) == 0.75


@pytest.mark.slow
def test_the_page_is_as_generated() -> None:
    """In under a minute on an idle machine; LONGVIS_GOLDEN=write writes it anew."""
    registry = Registry(working_dir=ROOT)
    text = claims_page.Page(check(registry), registry).text()
    if os.environ.get("LONGVIS_GOLDEN") == "write":
        claims_page.PAGE.write_text(text, encoding="utf-8")
    assert text == page(), ASKED
