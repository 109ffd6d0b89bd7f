"""The Python interface: the functions that `import longvis_bench as lv` offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.records import Dtype, Mode, Output
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Registry
from longvis_bench.resolution import AnyResolution, Resolution, resolution_of
from longvis_bench.sweep.reporter import Reporter, Silent

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from longvis_bench.measure.flops.counter import Count
    from longvis_bench.weights.matching import LoadReport


def bench(
    models: Sequence[str] = (),
    resolutions: Sequence[AnyResolution] = (),
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    retry: Sequence[str] = (),
    only_missing: bool = False,
    shard: tuple[int, int] | Literal["auto"] | None = None,
    machine: str | None = None,
    baseline: str | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure models at resolutions, each in processes of its own.

    Arguments:
        models: names as on the command line; empty for the quick default of this machine.
        resolutions: pixels per side, or (height, width) of rectangles.
        out: directory of the run; the default is a directory under results/runs/ of the working directory,
            the same one for the same arguments, so that the same call resumes an interrupted run.
        fresh: use a new numbered directory.
        retry: statuses whose cells are measured again, e.g. ["oom", "timeout"].
        only_missing: keep rows of older code, and measure only cells without a row.
        shard: (2, 8) measures the second of eight parts of the cells, "auto" that of this SLURM array task.
        machine: name of this machine in the results; by default its processor or GPU model and core count.
        baseline: one of the models; `time_vs_baseline` has the time per image over that model's.
        reporter: its methods are called as the sweep progresses; by default nothing is shown.
        options: further fields of `sweep.config.SweepConfig`, e.g. batch_sizes=[1, 8], dtypes=["bf16"].

    Returns:
        One row per cell, with the columns of results/README.md.

    Raises:
        LongvisError: a name or option is wrong, no cell can run, or the directory cannot be used.
        KeyboardInterrupt: the user interrupted the sweep; finished rows are stored, the same call resumes.
        HarnessFault: the harness itself failed in a cell; raised after all other cells are measured.
    """
    from longvis_bench.report.summary import frame
    from longvis_bench.sweep.session import start

    options |= {"models": models, "resolutions": resolutions}
    session = start(options, out=_path(out), fresh=fresh, machine=machine, shard=shard, baseline=baseline)
    outcome = session.run(reporter=reporter, retry=retry, only_missing=only_missing)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.faults:
        raise outcome.faults[0]
    if outcome.unwritten is not None:
        (reporter or Silent()).note(str(outcome.unwritten))
    return frame(outcome.rows)


def build(
    name: str,
    *,
    resolution: AnyResolution,
    num_classes: int = 1000,
    in_chans: int = 3,
    output: Output = "logits",
    models_dirs: Sequence[Path] = (),
) -> nn.Module:
    """Build a model by its name, on the current default device, with random initial weights.

    Arguments:
        name: a variant, `variant@implementation`, `variant[key=value]`, `timm:NAME` or `file.py:callable`.
        resolution: pixels per side of a square input, or (height, width).
        num_classes: width of the logits.
        in_chans: channels of the input.
        output: "logits", or "features" for the backbone without its head.
        models_dirs: further folders of cards.

    Returns:
        A module from (batch, in_chans, height, width) to logits (batch, num_classes), or with "features" to a
        tuple of maps (batch, channels, height, width), finest first, whose strides in pixels its attribute
        `strides` has.

    Raises:
        UnknownName: no model has this name.
        IllegalSize: the model cannot take this resolution.
        IllegalArgument: the arguments in brackets do not fit together.
        MissingDependency: the model needs a package that is not installed.
        CardError: a card does not follow the schema, or its factory cannot be found or called.
        NoMaps: features are asked of a model that offers none.
    """
    variant = Registry(models_dirs).find(name)
    size = _read(resolution)
    return build_output(variant, output, resolution=size, num_classes=num_classes, in_chans=in_chans)


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """Load weights from a safetensors or torch file, or a mapping; see `weights.matching.load_weights`."""
    from longvis_bench.weights.matching import load_weights as load

    return load(model, source if isinstance(source, Mapping) else Path(source), strict=strict)


def count(model: nn.Module, resolution: AnyResolution, *, in_chans: int = 3) -> Count:
    """Count parameters, MACs and FLOPs of a forward pass of one image; see `measure.flops.counter.count`."""
    from longvis_bench.measure.flops.counter import count as count_flops

    return count_flops(model, _read(resolution), in_chans=in_chans)


def fit(
    models: Sequence[str],
    resolutions: Sequence[AnyResolution] = (1024, 2048, 4096),
    *,
    memory: str | int | None = None,
    gpu: str | None = None,
    modes: Sequence[Mode] = ("infer",),
    batch_sizes: Sequence[int] = (1,),
    dtype: Dtype | None = None,
    device: str = "cuda",
    grad_checkpointing: bool = False,
    num_classes: int = 1000,
    output: Output = "logits",
    models_dirs: Sequence[Path] = (),
) -> pd.DataFrame:
    """Predict what fits into a memory, without the device and without allocating anything.

    Arguments:
        models: names or patterns as on the command line.
        resolutions: pixels per side, or (height, width) of rectangles.
        memory: to fit into, e.g. "24GiB", or bytes; by default that of `gpu`.
        gpu: a GPU by its short name, e.g. "rtx4090"; decides the attention kernels, too.
        modes: "infer", "train" or both.
        batch_sizes: those to answer for; the largest that fits is found besides.
        dtype: "fp32", "tf32", "bf16" or "fp16"; by default bf16 on cuda and fp32 on the CPU.
        device: "cuda" or "cpu".
        grad_checkpointing: also answer for training with gradient checkpointing.
        num_classes: width of the logits.
        output: "logits", or "features" for backbones without their heads.
        models_dirs: further folders of cards.

    Returns:
        One row per model, size, mode and batch, with the columns of `advice.fit.FitRow.columns`: `fits` is
        "yes", "tight", "no", or None where it is not known, for the `reason` given.

    Raises:
        LongvisError: a name, size or option is wrong, or no row has an answer.
    """
    import pandas as pd

    from longvis_bench.advice.fit import Question, make_device, refuse_hopeless
    from longvis_bench.advice.fit import fit as find

    target = make_device(device, gpu, _bytes(memory))
    question = Question(
        target,
        resolutions=[_read(resolution) for resolution in resolutions],
        modes=modes,
        batch_sizes=batch_sizes,
        dtype=dtype or ("bf16" if device == "cuda" else "fp32"),
        grad_checkpointing=grad_checkpointing,
        num_classes=num_classes,
        output=output,
    )
    rows = list(find(models, question, Registry(models_dirs)))
    refuse_hopeless(rows)
    frame = pd.DataFrame([row.columns for row in rows])
    return frame.assign(fits=pd.Series([row.fits for row in rows], dtype=object))


def reach(
    models: Sequence[str],
    resolutions: Sequence[AnyResolution] = (512,),
    *,
    seeds: int = 3,
    data: str = "digits",
    models_dirs: Sequence[Path] = (),
) -> pd.DataFrame:
    """Measure which pixels a token of the last map before pooling can see, on the CPU.

    Arguments:
        models: names or patterns as on the command line.
        resolutions: pixels per side, or (height, width) of rectangles.
        seeds: fresh models per size, and images for trained weights.
        data: "digits" or "pairs": weights that ship for these images are measured, too.
        models_dirs: further folders of cards.

    Returns:
        One row per model and size: `reach_share` (0-1), `reach_radius_50_px`, `reach_radius_90_px`, the radii
        of trained weights (`reach_trained_...`), `reach_basis`, `weights`, and the `reason` where there is
        none.  Definitions are in `measure/reach.py`.

    Raises:
        LongvisError: a name or option is wrong, or no row has a reach.
    """
    import pandas as pd

    from longvis_bench.advice.reach import measure_all, refuse_hopeless

    rows = list(
        measure_all(
            models,
            [_read(resolution) for resolution in resolutions],
            Registry(models_dirs),
            seeds=seeds,
            data=data,
        )
    )
    refuse_hopeless(rows)
    return pd.DataFrame([row.columns for row in rows])


def load_results(path: str | Path) -> pd.DataFrame:
    """The rows of a run directory, one row per cell.

    Arguments:
        path: directory of a run, or its cells.jsonl.

    Returns:
        One row per cell, with the columns of results/README.md.

    Raises:
        RunDirectoryError: there are no rows, or they are damaged or of an unknown schema.
    """
    from longvis_bench.report.summary import frame
    from longvis_bench.runs.directory import current, read_rows

    return frame(current(read_rows(Path(path))))


def compare(
    before: str | Path, after: str | Path | None = None, *, models: Sequence[str] = ()
) -> pd.DataFrame:
    """Compare two runs, or two models of one run, cell by cell.

    Arguments:
        before: directory of a run.
        after: directory of another run; may be left out with two models.
        models: two names, the first of `before` and the second of `after`; or one name of both runs.

    Returns:
        One row per common cell. `time_ratio` is the time per image after / before with the ends of its 95 %
        interval and its p-value; `verdict` is "faster", "slower", "same" or "unclear"; `memory_ratio` and
        `macs_ratio` are exact; `top1_p` is the p-value of McNemar's test. None where a side has no value.

    Raises:
        LongvisError: one run without two models, models that a run does not have, or no common cell.
        RunDirectoryError: a run cannot be read.
    """
    import pandas as pd

    from longvis_bench.report.compare import compare as find
    from longvis_bench.report.compare import records

    return pd.DataFrame(records(find(Path(before), _path(after), models)))


def claims(
    models: Sequence[str] = (),
    *,
    runs: Sequence[str | Path] = (),
    cache: bool = True,
    models_dirs: Sequence[Path] = (),
) -> pd.DataFrame:
    """Check the published numbers that the cards state.

    Arguments:
        models: names or patterns of variants; empty for all with published numbers.
        runs: directories of runs: only their models and sizes are checked, and measured numbers are
            compared with their rows.
        cache: read counts of earlier calls from the cache.
        models_dirs: further folders of cards.

    Returns:
        One row per published number, with `verdict` "reproduced", "contradicted" or "not comparable":
        `published` and `ours` in `unit`, `ratio` ours / published, and `why`, the likely reason of a
        contradiction or what is missing.  Ratios of times within a table, where runs are given, are further
        rows with a `reference`.

    Raises:
        LongvisError: a name is wrong, a run cannot be read, or no card has a published number of the models.
    """
    import pandas as pd

    from longvis_bench.published.measured import of_runs, relatives
    from longvis_bench.published.verdicts import check
    from longvis_bench.runs.merge import read_runs, side_by_side

    rows = side_by_side(read_runs([Path(run) for run in runs], one_per_cell=True)) if runs else []
    found = check(Registry(models_dirs), models, rows=rows if runs else None, cache=cache)
    ratios = relatives(found, rows)
    found = of_runs(found, rows) if runs else found
    return pd.DataFrame([*(one.record for one in found), *(one.record for one in ratios)])


def list_models(models_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of all registered models, including alternative implementations."""
    return Registry(models_dirs).names()


def _bytes(memory: str | int | None) -> int | None:
    """A memory in bytes.

    Raises:
        LongvisError: it is no size.
    """
    if memory is None or isinstance(memory, int):
        return memory
    try:
        return units.read_size(memory)
    except ValueError as error:
        raise LongvisError(f"memory takes {error}, not {memory[:80]!r}.") from error


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _read(resolution: AnyResolution) -> Resolution:
    try:
        return resolution_of(resolution)
    except ValueError as error:
        raise LongvisError(f"a resolution is {error}, not {resolution!r}.") from error
