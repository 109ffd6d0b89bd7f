"""Write docs/claims.md: every published number of the built-in cards with its verdict, and what it tells.

    python scripts/claims_page.py

The findings state numbers that are computed here from the cards and the counts; each first checks that what
it says still holds.  `tests/scripts/test_claims_page.py` makes parts of the page again, and all of it in its
slow form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from claims_findings import FINDINGS, Facts
from longvis_bench import units
from longvis_bench.published.verdicts import VERDICTS, Checked, by_source, check, ratio_text, sentence, tally
from longvis_bench.registry.presets import presets
from longvis_bench.registry.registry import Registry
from longvis_bench.report.summary import escape

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "claims.md"

INTRO = """\
# Published numbers, checked

`longvis claims` gives every published number of the cards a verdict. This page is its result for the
built-in cards, written by `python scripts/claims_page.py`; a test makes it again.

```sh
longvis claims --models swin-t
```

- **reproduced**: our count, rounded to the digits that the source prints, is the published number. A measured
  number is reproduced if its 95 % interval holds a value that would be printed like that.
- **contradicted**: it is not. `ratio` is ours / theirs. A reason is given only if it leads from our count to
  the published number: what is left out or counted twice, rounding, or another source that prints our count.
- **not comparable**: something is missing: weights, images, a GPU, or what the source does not state.

Parameters and MACs are counted at the published size on the meta device, with the classes of the published
dataset. Accuracies, throughputs and runtimes are compared with a run: `longvis claims RUN` also shows how
long each model takes over another one of the same table, beside the same ratio of the paper.
"""
PRESETS = """\
`longvis bench --preset NAME` measures the models, sizes and modes of a table, as far as there are cards of
them; `--models` and `--res` choose among them. `longvis claims RUN` then shows the ratios beside the paper's.

```sh
longvis bench --preset atlas-table1 --dry-run
```

"""


class Page:
    """The page of some checked numbers."""

    def __init__(self, found: Sequence[Checked], registry: Registry) -> None:
        self.found = found
        self.registry = registry

    def text(self) -> str:
        """All sections."""
        parts = [
            INTRO,
            f"## Result\n\n{sentence(self.found)}\n\n{self.tally()}\n",
            "## What is worth knowing\n\n" + self.findings() + "\n",
            f"## Contradicted\n\n{self.contradicted()}\n",
            f"## Not comparable without a run\n\n{self.missing()}\n",
            f"## Tables as presets\n\n{self.presets()}\n",
            f"## All parameters and MACs\n\n{self.counts()}\n",
        ]
        return "\n".join(parts)

    def tally(self) -> str:
        """Numbers by quantity and verdict."""
        lines = [
            [quantity, *(str(numbers[verdict]) for verdict in VERDICTS)]
            for quantity, numbers in tally(self.found).items()
        ]
        return _table(["quantity", *VERDICTS], lines, right=3)

    def findings(self) -> str:
        """The findings, a paragraph each."""
        facts = Facts(self.found, self.registry)
        return "\n\n".join(
            fill(" ".join(one(facts).split()), 120, break_long_words=False, break_on_hyphens=False)
            for one in FINDINGS
        )

    def contradicted(self) -> str:
        """Ours, theirs, the ratio, the likely reason, and all sources that print the number."""
        lines = [
            [*_numbers(one), escape(one.why), escape("; ".join(where))]
            for one, where in by_source([one for one in self.found if one.verdict == "contradicted"])
        ]
        return _table(["model", "px", "published", "ours", "ratio", "likely reason", "source"], lines)

    def counts(self) -> str:
        """All numbers that are counted."""
        lines = [
            [*_numbers(one), one.verdict, escape(one.claim.where)]
            for one in self.found
            if one.claim.quantity in ("params", "MACs")
        ]
        return _table(["model", "px", "published", "ours", "ratio", "verdict", "source"], lines)

    def missing(self) -> str:
        """What the measured numbers need, by how many need it."""
        needs = Counter(
            (one.claim.quantity, one.why) for one in self.found if one.verdict == "not comparable"
        )
        lines = [[quantity, escape(why), str(number)] for (quantity, why), number in needs.most_common()]
        return _table(["quantity", "what is missing", "numbers"], lines, right=1)

    def presets(self) -> str:
        """Names of published tables, and how to measure one."""
        lines = [
            [
                f"`{name}`",
                escape(preset.source),
                ", ".join(preset.models),
                ", ".join(map(str, preset.resolutions)),
                " and ".join(preset.modes),
            ]
            for name, preset in presets(self.registry).items()
        ]
        return PRESETS + _table(["preset", "source", "models", "px", "mode"], lines)


def _numbers(one: Checked) -> list[str]:
    """Model, size, published and own number, and their ratio."""
    claim = one.claim
    ours = units.UNKNOWN if one.ours is None else f"{claim.write(one.ours)} {claim.form.unit}"
    what = f"{claim.text} {'MACs' if claim.quantity == 'MACs' else 'parameters'}"
    return [*map(escape, (claim.model, str(claim.entry.resolution), what, ours)), ratio_text(one)]


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], right: int = 0) -> str:
    marks = ["---"] * (len(headings) - right) + ["---:"] * right
    rows = [f"| {' | '.join(cells)} |" for cells in (headings, marks, *lines)]
    return "\n".join(rows)


def main() -> None:
    """Write the page."""
    registry = Registry(working_dir=ROOT)
    PAGE.write_text(Page(check(registry), registry).text(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
