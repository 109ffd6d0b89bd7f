"""Measure one cell in this process.

The order of the phases keeps them from disturbing each other: operations are counted on the meta device;
then the memory counter starts, the model is built and timed, and the peak is read.  Validity and accuracy
come last, because their batches are not the cell's.  After each phase the row so far is published, so that
a process that dies later loses no result.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from longvis_bench import units
from longvis_bench.data.protocol import ImageData, LoadableData, open_data
from longvis_bench.errors import (
    DataError,
    LongvisError,
    Unsupported,
)
from longvis_bench.measure.cache import Cache
from longvis_bench.measure.cell_accuracy import add_accuracy
from longvis_bench.measure.cell_count import add_count, add_shapes, largest_output
from longvis_bench.measure.cell_energy import CellEnergy, start_energy
from longvis_bench.measure.cell_reach import add_reach
from longvis_bench.measure.device import take_device
from longvis_bench.measure.exception_status import LIMIT_COUNTS, classify, is_interrupt, is_ours
from longvis_bench.measure.flops.counter import count_parameters
from longvis_bench.measure.iteration import (
    DTYPES,
    Step,
    checkpoint_gradients,
    make_iteration,
    make_optimizer,
)
from longvis_bench.measure.latency.clock import Clock, CudaClock, clock_for, use_device
from longvis_bench.measure.latency.conditions import steady_conditions
from longvis_bench.measure.latency.counters import CounterWatch
from longvis_bench.measure.latency.graph import time_graph
from longvis_bench.measure.latency.noise import NoiseWatch, sensor_for
from longvis_bench.measure.latency.processes import disturbance
from longvis_bench.measure.latency.timing import measure_latency, time_parts
from longvis_bench.measure.latency.yardstick import Yardstick
from longvis_bench.measure.libraries import start_libraries
from longvis_bench.measure.memory.allocator import tight_allocator
from longvis_bench.measure.memory.outside import with_outside
from longvis_bench.measure.memory.peak import PeakMemory, known_parts_bytes, with_parts
from longvis_bench.measure.memory.workspace import convolution_workspace
from longvis_bench.measure.numerics import read_numerics, set_numerics
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.measure.validity.outputs import Maps, form_of
from longvis_bench.measure.validity.policy import check_cell, check_step
from longvis_bench.measure.world import RankError, measure_world
from longvis_bench.ops.feature_maps import Backbone, without_head
from longvis_bench.ops.fuse_conv_bn import fold_batch_norms
from longvis_bench.ops.kernel_trace import ATTENTION, observe
from longvis_bench.ops.model_tensors import to_dtype, to_memory_format
from longvis_bench.ops.selective_scan.operator import backend_for, warm_up_scan
from longvis_bench.phases import BUILD, COMPILE, IMPORT
from longvis_bench.records import Cell, MemoryRecord, ProcessRecord, Request, Row, SizeRecord, TimingRecord
from longvis_bench.registry.global_state import Snapshot
from longvis_bench.registry.registry import Registry, Variant

WATCH_LIMIT_S = 10.0
"""Longest iteration, in seconds, that is repeated to watch convolutions' workspace or the kernels."""


def measure_cell(request: Request, publish: Callable[[Row], object] = lambda row: None) -> Row:
    """Measure one cell.

    Arguments:
        request: the cell, and the budget and precision of its measurement.
        publish: called with the row so far after each phase.

    Returns:
        A complete row.  A failure inside the model becomes the row's status and never raises.

    Raises:
        Exception: this package itself has a fault; see `exception_status.is_ours`.
    """
    builder = RowBuilder(request)
    try:
        with builder.turns.together():
            _measure(request, builder, publish)
    except RankError as error:
        return builder.end(error.failure.status, error.failure.reason)
    except BaseException as error:  # models also call sys.exit
        if is_interrupt(error) or is_ours(error):
            raise
        status, reason = classify(error)
        limit = request.settings.memory_limit_bytes
        if status == "host_oom" and limit is not None:
            reason += f" The memory limit is {units.size(limit)}; {LIMIT_COUNTS}"
        if status == "error" and not isinstance(error, LongvisError):
            traceback.print_exception(error)  # to the cell's log, whose tail the row keeps
            reason += "; the traceback is in the row's log_tail."
        return builder.end(status, reason)
    return builder.end("ok")


def _measure(request: Request, builder: RowBuilder, publish: Callable[[Row], object]) -> None:
    cell = request.cell
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    settings = Snapshot(seeds=True)
    with builder.timed(IMPORT):
        variant = Registry(request.models_dirs, request.working_dir).find(request.model or cell.model)
        variant.require_packages()
        variant.load_factory()
    plan = variant.plan(cell.resolution)
    builder.size = SizeRecord(reach=plan.reach, padding_ratio=plan.padding_ratio, arguments=plan.arguments)
    if request.time_only:
        take_device(request, builder)
        _time_again(request, variant, builder, settings)
        return
    cache = Cache(request, variant)
    builder.cached = cache.used
    if "count" in cell.metrics:
        with builder.timed("count"):
            add_count(variant, cell, builder, cache)
        publish(builder.row())
    if cell.world > 1 and not set(cell.metrics) <= {"count", "reach"}:
        measure_world(request, builder)
        return
    if not set(cell.metrics) <= {"count", "reach"}:
        if cell.compile and cell.mode == "train" and "count" not in cell.metrics:
            with builder.timed("shapes"):
                builder.largest_output = largest_output(variant, cell)
        take_device(request, builder)
        if "memory" in cell.metrics:
            with builder.timed("shapes"):
                add_shapes(variant, cell, builder, cache)
            publish(builder.row())
        _measure_real(request, variant, builder, publish, settings, cache)
    if "reach" in cell.metrics:  # last, because it takes much memory and changes torch's seed
        publish(builder.row())
        add_reach(request, variant, builder, cache)


def _measure_real(
    request: Request,
    variant: Variant,
    builder: RowBuilder,
    publish: Callable[[Row], object],
    settings: Snapshot,
    cache: Cache,
) -> None:
    """Measure everything that needs the built model."""
    cell = request.cell
    device, data = torch.device(cell.device), _open(request)
    settings = _start_settings(request, settings, builder)
    start_libraries(cell, data)
    if builder.scans:
        with builder.timed(COMPILE):
            _warm_up_scan(cell, builder)
    images = cell_images(cell, data, cell.batch_size)
    with builder.timed("energy"):
        energy = start_energy(builder) if "time" in cell.metrics else None
    memory = _start_memory(images, builder) if "memory" in cell.metrics else None
    with builder.timed(BUILD):
        model = build_model(request, variant, builder)
        _restore(settings, builder)
    optimizer = make_optimizer(model) if cell.mode == "train" else None
    form = form_of(cell, model, images)
    iteration, parts = make_iteration(cell, model, images, optimizer, form=form)
    traced, _ = make_iteration(cell, model, images, optimizer, torch.no_grad)
    outputs: list[object] = []
    with builder.timed("time"):
        _time(request, builder, iteration, parts, energy)
    builder.features = form.seen[0] if isinstance(form, Maps) else None
    builder.numerics = read_numerics(device)
    _look_for_changes(settings, builder)
    if memory is not None:
        with builder.timed("memory"):
            record = memory.read(lambda: outputs.append(iteration()))
            held = known_parts_bytes(model, images, optimizer)
            builder.memory = with_outside(_explain(builder, record, held, traced, memory), builder)
    with builder.timed("kernels"):
        builder.backends |= _backends(model, cell, builder)
        _observe_kernels(traced, builder)
    publish(builder.row())
    with builder.timed("validity"):
        if cell.mode == "infer":
            measured = outputs[0] if outputs else None
            check_cell(model, images, measured, builder, lambda: cell_images(cell, data, 2)[1:])
        else:
            check_step(iteration, images, builder)
    publish(builder.row())
    add_accuracy(request, model, data, builder, cache)
    if builder.timing is not None and device.type == "cuda":
        publish(builder.row())
        with builder.timed("graph"):
            time_graph(iteration, images, builder)


def _start_settings(request: Request, before: Snapshot, builder: RowBuilder) -> Snapshot:
    """Undo the changes of importing and counting, then set the cell's device and numerics.

    Returns:
        The settings that the model must be measured under.
    """
    _restore(before, builder)
    use_device(torch.device(request.device or request.cell.device))
    set_numerics(request.cell)
    return Snapshot(seeds=True)


def _restore(settings: Snapshot, builder: RowBuilder) -> None:
    """Undo the model's changes of global settings; the row names those that cannot be undone."""
    builder.changed_settings = (*builder.changed_settings, *settings.restore())


def _look_for_changes(settings: Snapshot, builder: RowBuilder) -> None:
    """Record global settings that the forward changed while it was timed, and restore them."""
    known = builder.changed_settings
    new = [change for change in settings.changes() if change not in known]
    builder.changed_settings = (*known, *(f"{change}, while it was timed" for change in new))
    settings.restore()


def _time_again(request: Request, variant: Variant, builder: RowBuilder, settings: Snapshot) -> None:
    """Measure latency alone, in a further process of a cell whose other numbers are known."""
    cell = request.cell
    data = _open(request)
    settings = _start_settings(request, settings, builder)
    start_libraries(cell, data)
    images = cell_images(cell, data, cell.batch_size)
    with builder.timed(BUILD):
        model = build_model(request, variant, builder)
        _restore(settings, builder)
    optimizer = make_optimizer(model) if cell.mode == "train" else None
    iteration, parts = make_iteration(cell, model, images, optimizer)
    with builder.timed("time"):
        _time(request, builder, iteration, parts)


def _open(request: Request) -> LoadableData:
    """The cell's data.

    Raises:
        DataError: the folder has changed since the sweep was planned.
    """
    data = open_data(request.source or request.cell.data)
    if data.name != request.cell.data:
        raise DataError(f"the images of {request.cell.data} have changed; give the same command again.")
    return data


def _warm_up_scan(cell: Cell, builder: RowBuilder) -> None:
    """Compile the kernels of the model's scans; without its shapes, those of a tiny scan."""
    sizes = () if builder.tensor_peak is None else builder.tensor_peak.scan_sizes
    dtype = DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32
    warm_up_scan(cell.device, sizes, dtype=dtype, backward=cell.mode == "train")


def _explain(
    builder: RowBuilder, record: MemoryRecord, held: dict[str, int], iteration: Step, memory: PeakMemory
) -> MemoryRecord:
    """The peak with its parts; the libraries' buffers are measured last, by freeing them."""
    reasons, tensors = builder.null_reasons, builder.tensor_peak
    workspace = None
    if tensors is None:
        unknown = "gradients", "activations", "workspace"
        reasons |= {f"{name}_memory_bytes": reasons["tensor_peak_bytes"] for name in unknown}
    elif builder.latency_s > WATCH_LIMIT_S:
        reasons["workspace_memory_bytes"] = (
            f"not measured: another iteration would take {units.seconds(builder.latency_s)}"
        )
    else:
        with tight_allocator():
            workspace = convolution_workspace(tensors, iteration, memory.meter)
    library = memory.kept_by_libraries()
    if library is None:
        reasons["library_memory_bytes"] = (
            "only MKL, which multiplies matrices on x86, can be asked for the size of its buffers"
        )
    parts = held if tensors is None else tensors.parts_bytes
    return with_parts(record, parts, library=library, workspace=workspace)


def _start_memory(images: Tensor, builder: RowBuilder) -> PeakMemory | None:
    try:
        return PeakMemory(images)
    except Unsupported as error:
        builder.null_reasons["memory"] = str(error)
        return None


def build_model(request: Request, variant: Variant, builder: RowBuilder) -> nn.Module:
    """The model on its device, in its dtype and memory format, with its weights."""
    cell = request.cell
    with torch.device(cell.device):
        model = variant.build(resolution=cell.resolution, num_classes=cell.num_classes)
    if request.weights_path is not None:
        _load(request.weights_path, model, builder)
    if cell.output == "features":
        model = without_head(model, cell.model)
        _forget_random_head(model, builder)
    if "count" in builder.null_reasons and builder.params is None:
        builder.params = count_parameters(model)
    model.train(cell.mode == "train")
    if cell.grad_checkpointing:
        checkpoint_gradients(model, cell.model)
    if cell.fuse:
        builder.backends["folded"] = str(len(fold_batch_norms(model, cell.resolution)))
    to_dtype(model, DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32)
    to_memory_format(model, _memory_format(cell))
    return torch.compile(model) if cell.compile else model  # type: ignore[return-value]


def _load(path: Path, model: nn.Module, builder: RowBuilder) -> None:
    from longvis_bench.weights.matching import load_weights

    report = load_weights(model, path, strict=False)
    random = (*report.missing, *report.random)
    done = {"random_tensors": random, "reshaped": report.reshaped}
    assert builder.size is not None
    builder.size = builder.size.model_copy(update=done)


def _forget_random_head(backbone: Backbone, builder: RowBuilder) -> None:
    """Random tensors of the row are the backbone's alone."""
    assert builder.size is not None
    kept = set(backbone.backbone.state_dict())
    random = tuple(name for name in builder.size.random_tensors if name in kept)
    builder.size = builder.size.model_copy(update={"random_tensors": random})


def _memory_format(cell: Cell) -> torch.memory_format:
    return torch.channels_last if cell.memory_format == "channels_last" else torch.contiguous_format


def cell_images(cell: Cell, data: ImageData, batch: int) -> Tensor:
    """The first readable held-out images at the cell's resolution, in its dtype and memory format."""
    dtype = DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32
    device = torch.device(cell.device)
    asked, images = 0, torch.empty(0, 3, cell.height, cell.width, device=device, dtype=dtype)
    while len(images) < batch:  # a second pass only after broken files, which are few
        indices = [index % data.size("val") for index in range(asked, asked + batch - len(images))]
        more, _ = data.batch("val", indices, cell.resolution, device=device, dtype=dtype)
        asked, images = asked + len(indices), torch.cat([images, more]) if len(images) else more
    return images.contiguous(memory_format=_memory_format(cell))


def _time(
    request: Request,
    builder: RowBuilder,
    iteration: Callable[[], object],
    parts: dict[str, Callable[[], object]],
    energy: CellEnergy | None = None,
) -> None:
    """Sample latency and energy; without the metric `time` run once, so that memory is read when steady."""
    device = torch.device(request.cell.device)
    clock = clock_for(device)
    if request.cell.compile:
        with builder.timed(COMPILE):
            clock.time(iteration)
    if "time" not in request.cell.metrics:
        clock.time(iteration)
        return
    settings = request.settings
    budget_s = request.timing_budget_s
    keep = settings.memory_limit_bytes is None
    with builder.turns.alone(), steady_conditions(request.cell, keep_memory=keep) as conditions:
        yardstick = Yardstick(device, clock_for(device))
        watch, counters = NoiseWatch(sensor_for(device)), CounterWatch()

        def between() -> None:
            conditions.look()
            watch.look()
            yardstick.sample()

        record = measure_latency(
            iteration, clock, budget_s=budget_s, precision=settings.precision, look=between
        )
        noise, host_s = watch.read(), _host_seconds(clock, record)
        process = ProcessRecord(
            samples=len(record.samples_s),
            yardstick_s=yardstick.finish(),
            started=builder.started,
            disturbed=disturbance(noise, request.cell),
            noise=noise,
            counters=counters.read(),
        )
        apart = time_parts(parts, clock, budget_s) if parts else {}
        if energy is not None:
            with builder.timed("energy"):
                energy.measure(iteration, clock)
    builder.timing = record.model_copy(
        update={
            "noise": noise,
            "host_s": host_s,
            "processes": (process,),
            "parts_s": apart,
            "conditions": conditions.described,
        }
    )


def _host_seconds(clock: Clock, record: TimingRecord) -> tuple[float, ...]:
    """Seconds of the host for each counted sample; the clock's last ones.  Empty on a CPU."""
    return tuple(clock.host_s[-len(record.samples_s) :]) if isinstance(clock, CudaClock) else ()


def _observe_kernels(iteration: Step, builder: RowBuilder) -> None:
    """Record the kernels that one more iteration calls; for a compiled model, those of its Python code.

    Where an iteration takes too long, the attention kernel is unknown, and the scan's is the one that device
    and dtype select.

    Arguments:
        iteration: runs one batch, without inference mode, which hides the kernel of attention.
        builder: receives the kernels.
    """
    if builder.latency_s > WATCH_LIMIT_S:
        reason = f"not measured: another iteration would take {units.seconds(builder.latency_s)}"
        builder.null_reasons["attention"] = reason
        return
    with observe() as kernels:
        iteration()
    names = {kind: " and ".join(sorted(found)) for kind, found in kernels.items()}
    builder.attention = names.pop(ATTENTION, None)
    builder.backends |= names
    if builder.attention is None:
        builder.null_reasons["attention"] = "no softmax attention ran"


def _backends(model: nn.Module, cell: Cell, builder: RowBuilder) -> dict[str, str]:
    """Backends that are known without an observed iteration: the GPU, and the selective scan's kernel."""
    device = torch.device(cell.device)
    backends = {"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    named = getattr(model, "scan_backend", None)
    if callable(named):
        backends["scan"] = named(device)
    elif builder.scans:
        backends["scan"] = backend_for(device, torch.float32 if cell.mode == "train" else DTYPES[cell.dtype])
    return backends
