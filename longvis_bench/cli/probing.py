"""`longvis eval --probe`: accuracy of frozen features, as a table and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from longvis_bench.cli.train import show_share
from longvis_bench.errors import CheckpointError
from longvis_bench.files import write_whole
from longvis_bench.records import DataSpec
from longvis_bench.registry.registry import Registry
from longvis_bench.stats import wilson
from longvis_bench.text import without_paths

if TYPE_CHECKING:
    from longvis_bench.training.probe import Kind, ProbeResult

PROBES = ("knn", "linear")
FILE = "probes.csv"
COLUMNS = ("model", "resolution", "dataset", "weights", "probe", "setting", "cross_validated", "train_images")
RESULTS = ("features", "correct", "images", "top1", "top1_low", "top1_high")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `longvis eval` that a probe has, too."""

    kind: Kind
    models: Sequence[str]
    resolutions: Sequence[int]
    spec: DataSpec
    weights: Path | None
    pretrained: bool
    images: int | None
    device: str
    threads: int | None
    models_dirs: Sequence[Path]
    out: Path | None


def show_probes(asked: Asked) -> None:
    """Check all options, fit and measure the probes, print a table, and write a CSV file if asked."""
    from longvis_bench.training.probe import find_source, measure_probe, require_scikit_learn

    require_scikit_learn()
    device = _prepare(asked)
    registry = Registry(asked.models_dirs)
    variants = [registry.find(name) for name in registry.expand(asked.models)]
    if asked.weights is not None and len(variants) > 1:
        raise CheckpointError(f"--weights is for one model, and {len(variants)} are asked for.")
    jobs = []
    for resolution in asked.resolutions:
        for variant in variants:
            variant.plan(resolution)
            variant.require_packages()
            source = find_source(variant, asked.spec, resolution, asked.weights, asked.pretrained)
            jobs.append((variant, resolution, source))
    results = []
    with Console(stderr=True).status("extracting features") as status:
        for variant, resolution, source in jobs:
            status.update(f"{variant.full_name}  {resolution} px")
            results.append(
                measure_probe(
                    variant, asked.spec, resolution, asked.kind, source, images=asked.images, device=device
                )
            )
    _show(Console(highlight=False), results)
    if asked.out is not None:
        write(asked.out / FILE, results)


def _prepare(asked: Asked) -> str:
    """Set the number of CPU threads; return the device."""
    import torch

    from longvis_bench.devices import resolve_device
    from longvis_bench.environment import default_threads

    torch.set_num_threads(asked.threads or default_threads())
    return resolve_device(asked.device)


def _show(console: Console, results: Sequence[ProbeResult]) -> None:
    from longvis_bench.report.plain_table import plain_table

    first = results[0]
    console.print(f"{first.fitted.kind} probe of frozen features, {first.dataset}", markup=False)
    console.print()
    table = plain_table(["model", "weights"], ["px", "features", "setting", "top-1 (95 %)"])
    for result in results:
        table.add_row(
            escape(without_paths(result.model)),
            escape(result.weights),
            str(result.resolution),
            str(result.features),
            result.fitted.setting,
            show_share(result.correct, result.images),
        )
    console.print(table)
    console.print()
    console.print(
        f"Fitted on {first.fitted.train_images} training images, which chose the setting by "
        f"cross-validation; top-1 of {first.images} held-out images, with its 95 % interval."
    )


def write(path: Path, results: Sequence[ProbeResult]) -> None:
    """Write all results as a CSV file, with shares in 0-1."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[*COLUMNS, *RESULTS], *map(_line, results)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
    Console(highlight=False).print(f"Table: {path}", soft_wrap=True, markup=False)


def _line(result: ProbeResult) -> list[object]:
    fitted, ends = result.fitted, wilson(result.correct, result.images)
    assert ends is not None
    about = [without_paths(result.model), result.resolution, result.dataset, result.weights]
    how = [fitted.kind, fitted.setting, round(fitted.validated, 6), fitted.train_images]
    counts = [result.features, result.correct, result.images]
    return [*about, *how, *counts, *(round(share, 6) for share in (result.correct / result.images, *ends))]
