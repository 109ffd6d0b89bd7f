"""State the parameters and MACs of every built-in variant in its card, as counted on the meta device.

    python scripts/card_counts.py [FAMILY ...]

writes `params` and `macs` into `models/<family>/card.toml`; tests/registry/test_card_counts.py holds them
against the count.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from longvis_bench.errors import LongvisError
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.registry.card import COUNTED_AT
from longvis_bench.registry.discovery import built_in_cards
from longvis_bench.registry.registry import Registry


def main() -> None:
    """Count every variant of the named families, or of all, and write the cards."""
    for found in built_in_cards():
        if len(sys.argv) == 1 or found.card.family in sys.argv[1:]:
            file = found.folder / "card.toml"
            file.write_text(with_counts(file, list(found.card.variants)), encoding="utf-8")


def with_counts(file: Path, variants: list[str]) -> str:
    """The text of a card with the counts of its variants."""
    text = file.read_text(encoding="utf-8")
    for name in variants:
        params, macs = counted(name)
        print(name, params, macs, flush=True)
        lines = f"params = {params}\nmacs = {macs}\n"
        header = rf"(\[variants\.{re.escape(name)}\]\n)(?:params = \d+\n)?(?:macs = \d+\n)?"
        text = re.sub(header, rf"\g<1>{lines}", text)
    return text


def counted(name: str) -> tuple[int, int]:
    """Parameters, and MACs of one image, both at the size of cards."""
    variant = Registry().find(name)
    try:
        count = count_variant(variant, COUNTED_AT.resolution, COUNTED_AT.classes)
    except LongvisError as error:
        raise SystemExit(f"{name}: {error}") from error
    return count.params, count.macs


if __name__ == "__main__":
    main()
