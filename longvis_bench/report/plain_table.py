"""The common style of the report's tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table


def plain_table(left: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
    """An empty table with a rule below its headings and no frame.

    Arguments:
        left: headings of texts, which fold where they are too long.
        right: headings of numbers, which stay on one line.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
