"""The published numbers of the cards, each with the precision in which it was printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.registry.card import CARD_FILE, Published, read_printed
from longvis_bench.registry.discovery import FoundCard
from longvis_bench.registry.registry import Registry, Variant

Quantity = Literal["params", "MACs", "top-1", "top-5", "throughput", "runtime"]


class Form(NamedTuple):
    """How cards state a quantity."""

    quantity: Quantity
    unit: str
    factor: float
    """Of the unit, in parameters, MACs, shares, images per second or seconds."""


FORMS = {
    "params_m": Form("params", "M", 1e6),
    "macs_g": Form("MACs", "G", 1e9),
    "top1_percent": Form("top-1", "%", 0.01),
    "top5_percent": Form("top-5", "%", 0.01),
    "throughput_img_s": Form("throughput", "img/s", 1.0),
    "runtime_h": Form("runtime", "h", 3600.0),
}
"""Field of a card -> what it states."""
CLASSES = {"imagenet-1k": 1000, "hr-in100": 100}
"""Number of classes of a published dataset."""


@dataclass(frozen=True)
class Claim:
    """One published number of one model."""

    variant: Variant
    entry: Published
    form: Form
    printed: Decimal
    """In `form.unit`; its last digit is the last that was printed."""

    @property
    def quantity(self) -> Quantity:
        """What was published."""
        return self.form.quantity

    @property
    def model(self) -> str:
        """The variant, with the arguments that the source's model had."""
        return self.variant.full_name

    @property
    def value(self) -> float:
        """The number in `form.unit`."""
        return float(self.printed)

    @property
    def last_digit(self) -> float:
        """One unit of the last printed digit."""
        return float(Decimal(1).scaleb(int(self.printed.as_tuple().exponent)))

    @property
    def classes(self) -> int | None:
        """Number of classes of the published model; None if the card does not say which dataset it is for."""
        return CLASSES.get(self.entry.dataset or "")

    @property
    def where(self) -> str:
        """Source and table."""
        return f"{self.entry.source}, {self.entry.table}"

    @property
    def text(self) -> str:
        """The number as printed, with its unit."""
        return f"{self.printed} {self.form.unit}"

    def shows(self, value: float, slack: float = 0.0) -> bool:
        """Whether a value, in `form.unit`, would be printed as this number.

        Arguments:
            value: exact.
            slack: further distance that is allowed.
        """
        return abs(value - self.value) <= self.last_digit * (0.5 + 1e-9) + slack

    def write(self, value: float) -> str:
        """A value in `form.unit` with one digit more than was printed, and at least three."""
        digits = len(self.printed.as_tuple().digits)
        return units.significant(value, max(3, digits + 1))


def claims_of(registry: Registry, models: Sequence[str] = ()) -> list[Claim]:
    """The published numbers of the registered cards, in the order of the cards.

    Arguments:
        registry: holds the cards.
        models: names or patterns of variants; empty for all.

    Raises:
        UnknownName: no model has a name.
        LongvisError: none of the models has a published number.
    """
    wanted = {registry.find(name).variant for name in registry.expand(models)}
    every = [claim for found in registry.cards for claim in _claims_of_card(found, registry)]
    kept = [claim for claim in every if not models or claim.variant.variant in wanted]
    if not kept:
        known = sorted({claim.variant.variant for claim in every})
        raise LongvisError(
            f"no card has a published number of {units.listing(list(models), 3)}; "
            f"there are some of {units.listing(known, 8)}."
        )
    return kept


def _claims_of_card(found: FoundCard, registry: Registry) -> Iterator[Claim]:
    printed = read_printed(found.folder / CARD_FILE)
    for entry, numbers in zip(found.card.published, printed, strict=True):
        variant = registry.find(entry.model)
        yield from (Claim(variant, entry, FORMS[name], number) for name, number in numbers.items())
