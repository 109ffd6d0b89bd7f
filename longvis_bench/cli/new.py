"""`longvis new`: write the files of a new model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def new(
    name: Annotated[str, typer.Argument(help="Lower-case name of the model.")],
) -> None:
    """Write ./models/NAME/ with a card, a small model and a test, to replace by your own."""
    from longvis_bench.adapters.scaffold import write_model

    folder = write_model(name)
    console = Console(highlight=False, soft_wrap=True)
    for path in sorted(folder.iterdir()):
        console.print(f"wrote {path}")
    console.print(f"Next: longvis check {name}; then longvis bench --models {name} --res 1024")
