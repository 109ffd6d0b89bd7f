"""Measure one cell in this process.

The order is what keeps the numbers apart: operations are counted on the meta device, then the memory counter
starts, the model is built and timed, the peak is read, and only then do validity and accuracy run, whose
batches are not the cell's.  After every phase the row so far is published, so that a process that dies later
loses nothing it had.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench import units
from longvis_bench.data.protocol import ImageData, LoadableData, open_data
from longvis_bench.errors import (
    CardError,
    DataError,
    IllegalSize,
    LongvisError,
    MissingDependency,
    Unsupported,
)
from longvis_bench.measure.exception_status import LIMIT_COUNTS, cause, classify, is_interrupt, is_ours
from longvis_bench.measure.flops.counter import count_parameters, count_variant, variant_parameters
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
from longvis_bench.measure.latency.noise import NoiseWatch, sensor_for
from longvis_bench.measure.latency.processes import disturbance
from longvis_bench.measure.latency.timing import measure_latency
from longvis_bench.measure.latency.yardstick import Yardstick
from longvis_bench.measure.memory.allocator import tight_heap
from longvis_bench.measure.memory.peak import PeakMemory, held_bytes, with_parts
from longvis_bench.measure.memory.tensor_peak import tensor_peak
from longvis_bench.measure.memory.workspace import convolution_workspace
from longvis_bench.measure.numerics import read_numerics, set_numerics
from longvis_bench.measure.row_builder import Draft
from longvis_bench.measure.validity.policy import check_cell, check_step
from longvis_bench.ops.fuse_conv_bn import fold_batch_norms
from longvis_bench.ops.kernel_trace import ATTENTION, observe
from longvis_bench.ops.model_tensors import to_dtype
from longvis_bench.ops.selective_scan.operator import backend_for, warm_up_scan
from longvis_bench.phases import BUILD, COMPILE, IMPORT
from longvis_bench.records import Cell, MemoryRecord, ProcessRecord, Request, Row, SizeRecord, TimingRecord
from longvis_bench.registry.global_state import Snapshot
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.weights.resolving import no_weights

WATCH_LIMIT_S = 10.0
"""Longest iteration that is run once more to watch convolutions' workspace, or a compiled model's kernels."""
PART_ITERATIONS = 5
"""Train steps whose parts are timed apart, at most."""
RUNTIME_SIZE = 256
"""Pixels per side of the image that libraries start with; every data set can be made at it."""


def measure_cell(request: Request, publish: Callable[[Row], object] = lambda row: None) -> Row:
    """Measure one cell.

    Arguments:
        request: the cell and how hard to measure it.
        publish: called with the row so far after each phase.

    Returns:
        A complete row.  What goes wrong inside the model is its status, never an exception.

    Raises:
        Exception: this harness has a fault; see `exception_status.is_ours`.
    """
    draft = Draft(request)
    try:
        _measure(request, draft, publish)
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
        return draft.end(status, reason)
    return draft.end("ok")


def _measure(request: Request, draft: Draft, publish: Callable[[Row], object]) -> None:
    cell = request.cell
    torch.set_num_threads(cell.threads)
    torch.manual_seed(cell.seed)
    settings = Snapshot(seeds=True)
    with draft.timed(IMPORT):
        variant = Registry(request.models_dirs, request.working_dir).find(request.model or cell.model)
        variant.require_packages()
        variant.load_factory()
    plan = variant.plan(cell.resolution)
    draft.values["size"] = SizeRecord(
        reach=plan.reach, padding_ratio=plan.padding_ratio, arguments=plan.arguments
    )
    if request.time_only:
        _time_again(request, variant, draft, settings)
        return
    if "count" in cell.metrics:
        with draft.timed("count"):
            _count(variant, cell, draft)
        publish(draft.row())
    if "memory" in cell.metrics:
        with draft.timed("shapes"):
            _execute_shapes(variant, cell, draft)
        publish(draft.row())
    _measure_real(request, variant, draft, publish, settings)


def _execute_shapes(variant: Variant, cell: Cell, draft: Draft) -> None:
    """The tensor peak; where it cannot be had, the row says why."""
    if cell.compile:
        draft.values["null_reasons"]["tensor_peak_bytes"] = "torch.compile decides which tensors there are"
        return
    try:
        draft.tensors = tensor_peak(variant, cell)
    except (IllegalSize, MissingDependency, CardError, Unsupported):
        raise
    except Exception as error:
        draft.values["null_reasons"]["tensor_peak_bytes"] = (
            f"the model does not run without data: {cause(error)}"
        )
        return
    draft.values["tensors"] = draft.tensors.to_record()


def _count(variant: Variant, cell: Cell, draft: Draft) -> None:
    """Operations; a model that does not run without data keeps the rest of its row."""
    try:
        count = count_variant(variant, cell.resolution, cell.num_classes)
    except (IllegalSize, MissingDependency, CardError):
        raise
    except Exception as error:
        if is_ours(error):
            raise
        draft.values["null_reasons"]["count"] = cause(error)
        draft.values["params"] = variant_parameters(
            variant, cell.resolution, cell.num_classes, allocate=set(cell.metrics) <= {"count"}
        )
        return
    draft.values["count"] = count.to_record()
    draft.largest_output = count.largest_output


def _measure_real(
    request: Request,
    variant: Variant,
    draft: Draft,
    publish: Callable[[Row], object],
    settings: Snapshot,
) -> None:
    """Everything that needs the model itself."""
    cell = request.cell
    if set(cell.metrics) <= {"count"}:
        return
    device, data = torch.device(cell.device), _open(request)
    settings = _start_settings(cell, settings, draft)
    _start_runtime(device, data)
    if draft.scans:
        with draft.timed(COMPILE):
            warm_up_scan(device)
    images = _images(cell, data, cell.batch_size)
    memory = _start_memory(images, draft) if "memory" in cell.metrics else None
    with draft.timed(BUILD):
        model = _build(request, variant, draft)
        _restore(settings, draft)
    optimizer = make_optimizer(model) if cell.mode == "train" else None
    iteration, parts = make_iteration(cell, model, images, optimizer)
    traced, _ = make_iteration(cell, model, images, optimizer, torch.no_grad)
    outputs: list[object] = []
    with draft.timed("time"):
        _time(request, draft, iteration, parts)
    draft.values["numerics"] = read_numerics(device)
    _look_for_changes(settings, draft)
    if memory is not None:
        with draft.timed("memory"):
            record = memory.read(lambda: outputs.append(iteration()))
            held = held_bytes(model, images, optimizer)
            draft.values["memory"] = _explain(draft, record, held, traced, memory)
    with draft.timed("kernels"):
        draft.values["backends"] |= _backends(model, cell, draft)
        _observe_kernels(traced, draft)
    publish(draft.row())
    with draft.timed("validity"):
        if cell.mode == "infer":
            measured = outputs[0] if outputs else None
            check_cell(model, images, measured, draft, lambda: _images(cell, data, 2)[1:])
        else:
            check_step(iteration, images, draft)
    publish(draft.row())
    _measure_accuracy(request, model, data, draft)


def _start_settings(cell: Cell, before: Snapshot, draft: Draft) -> Snapshot:
    """Undo what importing and counting changed, then set the cell's device and numerics.

    Returns:
        The settings that the model must be measured under.
    """
    _restore(before, draft)
    use_device(torch.device(cell.device))
    set_numerics(cell)
    return Snapshot(seeds=True)


def _restore(settings: Snapshot, draft: Draft) -> None:
    """Undo what the model's code changed for the whole process; the row names what cannot be undone."""
    known = draft.values.get("changed_settings", ())
    draft.values["changed_settings"] = (*known, *settings.restore())


def _look_for_changes(settings: Snapshot, draft: Draft) -> None:
    """Name settings that the forward changed while it was timed, and restore them for what follows."""
    known = draft.values["changed_settings"]
    new = [change for change in settings.changes() if change not in known]
    draft.values["changed_settings"] = (*known, *(f"{change}, while it was timed" for change in new))
    settings.restore()


def _time_again(request: Request, variant: Variant, draft: Draft, settings: Snapshot) -> None:
    """Latency alone, in a further process of a cell that has its other numbers."""
    cell = request.cell
    device, data = torch.device(cell.device), _open(request)
    settings = _start_settings(cell, settings, draft)
    _start_runtime(device, data)
    images = _images(cell, data, cell.batch_size)
    with draft.timed(BUILD):
        model = _build(request, variant, draft)
        _restore(settings, draft)
    optimizer = make_optimizer(model) if cell.mode == "train" else None
    iteration, parts = make_iteration(cell, model, images, optimizer)
    with draft.timed("time"):
        _time(request, draft, iteration, parts)


def _open(request: Request) -> LoadableData:
    """The cell's data.

    Raises:
        DataError: the folder is no longer what was planned.
    """
    data = open_data(request.source or request.cell.data)
    if data.name != request.cell.data:
        raise DataError(f"the images of {request.cell.data} have changed; give the same command again.")
    return data


def _start_runtime(device: torch.device, data: ImageData) -> None:
    """Load the data, start threads and kernel libraries: none of that is part of a model's memory."""
    images, _ = data.batch("val", [0], RUNTIME_SIZE, device=device)
    with torch.inference_mode():
        maps = F.conv2d(images, images.new_ones(8, 3, 3, 3))
        F.linear(maps, images.new_ones(8, maps.shape[-1]))


def _explain(
    draft: Draft, record: MemoryRecord, held: dict[str, int], iteration: Step, memory: PeakMemory
) -> MemoryRecord:
    """The peak with its parts; what libraries keep is found last, by taking it from them."""
    reasons, tensors = draft.values["null_reasons"], draft.tensors
    workspace = None
    if tensors is None:
        unknown = "gradients", "activations", "workspace"
        reasons |= {f"{name}_memory_bytes": reasons["tensor_peak_bytes"] for name in unknown}
    elif draft.latency_s > WATCH_LIMIT_S:
        reasons["workspace_memory_bytes"] = (
            f"not watched: another iteration would take {units.seconds(draft.latency_s)}"
        )
    else:
        with tight_heap():
            workspace = convolution_workspace(tensors, iteration, memory.meter)
    library = memory.kept_by_libraries()
    if library is None:
        reasons["library_memory_bytes"] = "only MKL, which multiplies on x86, says what it keeps"
    parts = held if tensors is None else tensors.parts_bytes
    return with_parts(record, parts, library=library, workspace=workspace)


def _start_memory(images: Tensor, draft: Draft) -> PeakMemory | None:
    try:
        return PeakMemory(images)
    except Unsupported as error:
        draft.values["null_reasons"]["memory"] = str(error)
        return None


def _build(request: Request, variant: Variant, draft: Draft) -> nn.Module:
    """The model on its device, in its dtype and memory format, with its weights."""
    cell = request.cell
    with torch.device(cell.device):
        model = variant.build(resolution=cell.resolution, num_classes=cell.num_classes)
    if "count" in draft.values["null_reasons"] and draft.values["params"] is None:
        draft.values["params"] = count_parameters(model)
    if request.weights_path is not None:
        _load(request.weights_path, model, draft)
    model.train(cell.mode == "train")
    if cell.grad_checkpointing:
        checkpoint_gradients(model, cell.model)
    if cell.fuse:
        draft.values["backends"]["folded"] = str(len(fold_batch_norms(model, cell.resolution)))
    to_dtype(model, DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32)
    model = model.to(memory_format=_memory_format(cell))
    return torch.compile(model) if cell.compile else model  # type: ignore[return-value]


def _load(path: Path, model: nn.Module, draft: Draft) -> None:
    from longvis_bench.weights.matching import load_weights

    report = load_weights(model, path, strict=False)
    random = (*report.missing, *report.random)
    done = {"random_tensors": random, "reshaped": report.reshaped}
    draft.values["size"] = draft.values["size"].model_copy(update=done)


def _memory_format(cell: Cell) -> torch.memory_format:
    return torch.channels_last if cell.memory_format == "channels_last" else torch.contiguous_format


def _images(cell: Cell, data: ImageData, batch: int) -> Tensor:
    """The first readable held-out images at the cell's resolution, in its dtype and memory format."""
    dtype = DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32
    device = torch.device(cell.device)
    asked, images = 0, torch.empty(0, 3, cell.resolution, cell.resolution, device=device, dtype=dtype)
    while len(images) < batch:  # again only after broken files, which are few
        indices = [index % data.size("val") for index in range(asked, asked + batch - len(images))]
        more, _ = data.batch("val", indices, cell.resolution, device=device, dtype=dtype)
        asked, images = asked + len(indices), torch.cat([images, more]) if len(images) else more
    return images.contiguous(memory_format=_memory_format(cell))


def _time(
    request: Request, draft: Draft, iteration: Callable[[], object], parts: dict[str, Callable[[], object]]
) -> None:
    """Latency samples; where time is not asked for, one run, so that memory is read in the steady state."""
    device = torch.device(request.cell.device)
    clock = clock_for(device)
    if request.cell.compile:
        with draft.timed(COMPILE):
            clock.time(iteration)
    if "time" not in request.cell.metrics:
        clock.time(iteration)
        return
    settings = request.settings
    budget_s = request.timing_budget_s
    keep = settings.memory_limit_bytes is None
    with steady_conditions(request.cell, keep_memory=keep) as conditions:
        yardstick = Yardstick(device, clock_for(device))
        watch, counters = NoiseWatch(sensor_for(device)), CounterWatch()

        def between() -> None:
            watch.look()
            yardstick.sample()

        record = measure_latency(
            iteration, clock, budget_s=budget_s, precision=settings.precision, look=between
        )
        noise, host_s = watch.read(), _host_seconds(clock, record)
        process = ProcessRecord(
            samples=len(record.samples_s),
            yardstick_s=yardstick.finish(),
            started=draft.values["started"],
            disturbed=disturbance(noise, request.cell),
            noise=noise,
            counters=counters.read(),
        )
        apart = time_parts(parts, clock, budget_s) if parts else {}
    draft.values["timing"] = record.model_copy(
        update={
            "noise": noise,
            "host_s": host_s,
            "processes": (process,),
            "parts_s": apart,
            "conditions": conditions,
        }
    )


def _host_seconds(clock: Clock, record: TimingRecord) -> tuple[float, ...]:
    """The host's time of the counted samples, which are the clock's last; empty on a CPU."""
    return tuple(clock.host_s[-len(record.samples_s) :]) if isinstance(clock, CudaClock) else ()


def time_parts(parts: dict[str, Step], clock: Clock, budget_s: float) -> dict[str, tuple[float, ...]]:
    """Seconds of each part in a few steps; in one step at least, and no further one once the time is over."""
    start = clock.now()
    apart: list[dict[str, float]] = []
    while len(apart) < PART_ITERATIONS and (not apart or clock.now() - start < budget_s):
        apart.append({name: clock.time(part) for name, part in parts.items()})
    return {name: tuple(sample[name] for sample in apart) for name in parts}


def _observe_kernels(iteration: Step, draft: Draft) -> None:
    """Write the kernels into the row, as one more iteration shows them, of a compiled model its Python code.

    Where that takes too long, the attention's is unknown, and the scan's is the one that its device and dtype
    decide.

    Arguments:
        iteration: runs one batch, without inference mode, which hides the kernel of attention.
        draft: of the row.
    """
    if draft.latency_s > WATCH_LIMIT_S:
        reason = f"not watched: another iteration would take {units.seconds(draft.latency_s)}"
        draft.values["null_reasons"]["attention"] = reason
        return
    with observe() as kernels:
        iteration()
    names = {kind: " and ".join(sorted(found)) for kind, found in kernels.items()}
    draft.values["attention"] = names.pop(ATTENTION, None)
    draft.values["backends"] |= names
    if draft.values["attention"] is None:
        draft.values["null_reasons"]["attention"] = "no softmax attention ran"


def _backends(model: nn.Module, cell: Cell, draft: Draft) -> dict[str, str]:
    """What is known to run without looking: the GPU, and the selective scan's kernel."""
    device = torch.device(cell.device)
    backends = {"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    named = getattr(model, "scan_backend", None)
    if callable(named):
        backends["scan"] = named(device)
    elif draft.scans:
        backends["scan"] = backend_for(device, torch.float32 if cell.mode == "train" else DTYPES[cell.dtype])
    return backends


def _measure_accuracy(request: Request, model: nn.Module, data: ImageData, draft: Draft) -> None:
    """Top-1 and top-5 where the weights are for this data; else why not."""
    from longvis_bench.measure.accuracy import batch_for, measure_accuracy

    cell = request.cell
    reason = _no_accuracy(request, draft)
    if reason is not None:
        draft.values["null_reasons"]["accuracy"] = reason
        return
    with draft.timed("accuracy"):
        result = measure_accuracy(
            model,
            data,
            resolution=cell.resolution,
            images=cell.images,
            batch_size=batch_for(cell.resolution),
            device=torch.device(cell.device),
            dtype=DTYPES[cell.dtype],
            logits=cell.num_classes,
            places=request.logit_places,
        )
    draft.values["accuracy"] = result.to_record(
        weights=cell.weights or "", trained_resolution=_trained_resolution(request)
    )
    if request.predictions_path is not None:
        result.to_predictions().save(request.predictions_path)


def _trained_resolution(request: Request) -> int | None:
    from longvis_bench.weights.store import read_metadata

    assert request.weights_path is not None
    if request.trained_resolution is not None:
        return request.trained_resolution
    resolution = read_metadata(request.weights_path).get("resolution")
    return resolution if isinstance(resolution, int) else None


def _no_accuracy(request: Request, draft: Draft) -> str | None:
    cell = request.cell
    if "accuracy" not in cell.metrics:
        return "not asked for (--metrics)"
    if cell.mode == "train":
        return "measured in inference cells only"
    if request.weights_path is None:
        return no_weights(cell.model, cell.data, cell.resolution)
    random = draft.values["size"].random_tensors
    if random:
        return (
            f"{len(random)} tensors are random with these weights at {cell.resolution} px: {random[0]}, ..."
        )
    return None
