"""Published numbers as they are printed, and the names of the tables they stand in."""

from __future__ import annotations

from decimal import Decimal

import pytest

from longvis_bench.errors import LongvisError, UnknownName
from longvis_bench.published.numbers import FORMS, claims_of
from longvis_bench.registry.card import NUMBERS, Published, read_printed
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry


def test_every_number_of_a_card_has_a_form() -> None:
    assert set(FORMS) == set(NUMBERS)
    numbers = {name for name, field in Published.model_fields.items() if field.annotation == (float | None)}
    assert numbers == set(NUMBERS)


def test_a_number_keeps_its_last_digit() -> None:
    """45.0 and 45 are equal as numbers, but not as claims."""
    cards = {found.card.family: found for found in built_in_cards()}
    printed = read_printed(cards["convnext"].folder / "card.toml")
    macs = [numbers["macs_g"] for numbers in printed if "macs_g" in numbers]
    assert Decimal("45.0") in macs
    assert {str(number) for number in macs} >= {"45.0", "101.0"}
    assert len(printed) == len(cards["convnext"].card.published)


def test_every_number_of_every_card_is_a_claim() -> None:
    registry = Registry()
    stated = [
        getattr(entry, name)
        for found in registry.cards
        for entry in found.card.published
        for name in NUMBERS
        if getattr(entry, name) is not None
    ]
    claims = claims_of(registry)
    assert [claim.value for claim in claims] == stated
    assert len(stated) > 400


@pytest.mark.parametrize(
    ("printed", "value", "shown"),
    [
        ("29", 28.59, True),
        ("29", 28.49, False),
        ("4.5", 4.45, True),
        ("4.5", 4.55, True),
        ("4.5", 4.551, False),
        ("45.0", 45.04, True),
        ("45.0", 45.21, False),
        ("45", 45.21, True),
    ],
)
def test_rounding_is_that_of_the_printed_digits(printed: str, value: float, shown: bool) -> None:
    (claim, *_) = claims_of(Registry(), ["vit-s"])
    changed = type(claim)(claim.variant, claim.entry, FORMS["macs_g"], Decimal(printed))
    assert changed.shows(value) == shown


def test_arguments_of_a_published_model_are_part_of_its_name() -> None:
    claims = claims_of(Registry(), ["maxvit-t"])
    assert {(claim.entry.resolution, claim.model) for claim in claims} == {
        (224, "maxvit-t"),
        (512, "maxvit-t[windows=16]"),
    }


def test_patterns_choose_models() -> None:
    assert {claim.variant.variant for claim in claims_of(Registry(), ["swin-?"])} == {
        "swin-t",
        "swin-s",
        "swin-b",
        "swin-l",
    }


def test_bad_names_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="unknown model"):
        claims_of(Registry(), ["swinn-*"])
    with pytest.raises(LongvisError, match=r"no card has a published number of vit-n; there are some of "):
        claims_of(Registry(), ["vit-n"])
