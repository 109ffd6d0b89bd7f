"""`longvis flops`: MACs of a model by module and operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longvis_bench import units
from longvis_bench.cli.options import (
    HOW,
    OUTPUT,
    WHAT,
    Model,
    ModelsDirs,
    OneRes,
    OutputOption,
    reader,
)
from longvis_bench.errors import CardError, IllegalSize, MissingDependency, NoMaps, Unsupported
from longvis_bench.records import FeaturesRecord, Output
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Resolution

if TYPE_CHECKING:
    from longvis_bench.measure.flops.counter import Count


def flops(
    name: Model,
    res: OneRes,
    classes: Annotated[
        int,
        typer.Option(
            "--classes",
            metavar="N",
            help="Width of the logits.",
            parser=reader("--classes", units.read_whole),
            rich_help_panel=WHAT,
        ),
    ] = 1000,
    output: OutputOption = "logits",
    no_fvcore: Annotated[
        bool,
        typer.Option("--no-fvcore", help="Do not compare with fvcore's count.", rich_help_panel=HOW),
    ] = False,
    models_dir: ModelsDirs = None,
    depth: Annotated[
        int,
        typer.Option(
            "--depth",
            metavar="N",
            help="Levels of submodules to show.",
            parser=reader("--depth", units.read_whole),
            rich_help_panel=OUTPUT,
        ),
    ] = 2,
) -> None:
    """Count MACs and FLOPs per image, by module and operator, and compare them with fvcore's count."""
    from longvis_bench.measure.flops.fvcore_check import compare

    variant = Registry(models_dir or ()).find(name)
    form: Any = output
    result = _counted(variant, res, classes, form)
    console = Console(highlight=False)
    what = f"{classes} classes" if output == "logits" else "features"
    console.print(
        f"[bold]{escape(name)}[/] at {res} px, {what}, one image, eval: "
        f"{units.count(result.params)} parameters, {units.count(result.macs)} MACs, "
        f"{units.count(result.flops)} FLOPs, {units.count(result.scan_flops)} FLOPs in scans"
    )
    if result.features is not None:
        console.print(_maps(result.features))
    console.print(_by_module(result, depth))
    console.print(_by_operator(result))
    _print_ledger(console, result)
    if not no_fvcore:
        console.print(escape(compare(variant, res, classes, form)))


def _maps(features: FeaturesRecord) -> str:
    """The maps and their size, in a sentence."""
    maps = zip(features.strides, features.channels, strict=True)
    listed = ", ".join(f"stride {stride} with {channels} channels" for stride, channels in maps)
    return f"Maps: {listed}; {units.size(features.held_bytes)} in fp32."


def _counted(variant: Variant, resolution: Resolution, classes: int, output: Output) -> Count:
    """The count of a model.

    Raises:
        Unsupported: the model cannot be counted without data; the message has its parameters and the reason.
    """
    from longvis_bench.measure.exception_status import cause, is_ours
    from longvis_bench.measure.flops.counter import count_variant, variant_parameters

    variant.plan(resolution)
    try:
        return count_variant(variant, resolution, classes, output)
    except (IllegalSize, MissingDependency, CardError, NoMaps):
        raise
    except Exception as error:
        if is_ours(error):
            raise
        params = variant_parameters(variant, resolution, classes, allocate=True, output=output)
        known = "" if params is None else f"it has {units.count(params)} parameters, but "
        raise Unsupported(
            f"{variant.full_name} at {resolution} px: {known}its operations cannot be counted without data: "
            f"{cause(error).rstrip('.')}."
        ) from error


def _table(title: str, *headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right", overflow="fold")
    return table


def _by_module(result: Count, depth: int) -> Table:
    table = _table("By module", "module", "MACs", "share")
    for path, macs in result.by_module.items():
        if path and path.count(".") < depth:
            table.add_row(escape(path), units.count(macs), units.percent(result.share(macs)))
    return table


def _by_operator(result: Count) -> Table:
    table = _table("By operator", "operator", "calls", "MACs", "share")
    for name, macs in result.by_operator.items():
        calls = str(result.ledger.formula[name])
        table.add_row(name, calls, units.count(macs), units.percent(result.share(macs)))
    return table


def _print_ledger(console: Console, result: Count) -> None:
    ledger = result.ledger
    unknown = units.several(len(ledger.unknown), "unknown operator")
    console.print(
        f"Ledger: {ledger.formula.total()} calls with a formula, {ledger.free.total()} calls that do no "
        f"multiply-accumulate work, {unknown}; coverage {units.percent(result.coverage)}."
    )
    for name, elements in ledger.unknown.items():
        console.print(f"  unknown: {escape(name)}, {units.count(elements)} output elements")
    if ledger.flex:
        console.print(
            f"FlexAttention: {units.several(len(ledger.flex), 'call')}; {units.count(ledger.flex_masked)} "
            f"MACs masked (in the blocks of their masks, counted above), {units.count(ledger.flex_dense)} "
            f"MACs dense; {units.several(ledger.flex_unknown, 'mask')} of unknown density, counted as dense."
        )
