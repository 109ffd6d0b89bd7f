"""Peak bytes of the tensors alone, computed without running the model: the iteration executed by shape.

A copy of the model holds fake tensors of the cell's device: shapes, dtypes and layouts without memory.  One
iteration runs on them, so that torch picks the same kernels as on the device (fused attention included), and
a dispatch mode adds up the storages that are alive, each until its last reference is gone.  In train mode
this includes what autograd saves for the backward pass, gradients, and the optimizer's state and temporaries.

Memory that a kernel takes internally or an allocator keeps is not in tensors.  `peak.py` measures it, too, so
the difference between the two peaks is workspace, allocator and threads' caches.  As nothing is allocated,
the tensor peak is also known where the cell itself runs out of memory.

`planned_trace` does the same for an NVIDIA GPU that is not there (`planned_device.py`), and gives the trace
of all storages: when each came and went, and its size.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvis_bench.measure.flops.formulas import SCAN
from longvis_bench.measure.iteration import DTYPES, TrainStep, checkpoint_gradients, make_optimizer
from longvis_bench.measure.memory.peak import HELD
from longvis_bench.measure.memory.planned_device import (
    give_state,
    inner_bytes,
    planned_device,
    planned_step,
    step_temporaries,
)
from longvis_bench.measure.memory.trace import Trace, TraceBuilder
from longvis_bench.ops.fuse_conv_bn import fold_batch_norms
from longvis_bench.ops.model_tensors import copy_with, is_dense, storages
from longvis_bench.ops.planned_gpu import Capability
from longvis_bench.ops.selective_scan.operator import ScanSize, grouped
from longvis_bench.records import Cell, Output, TensorRecord
from longvis_bench.registry.output import build_output
from longvis_bench.registry.registry import Variant
from longvis_bench.resolution import Resolution


@dataclass(frozen=True)
class TensorPeak:
    """The storages alive at the peak."""

    peak_bytes: int
    parts_bytes: dict[str, int]
    """Bytes of weights, buffers, gradients, optimizer, input and activations at the peak; they sum to it."""
    convolutions: dict[str, int]
    """`signature` of a convolution -> most bytes alive right after it."""
    largest: int
    """Elements of the largest tensor; a view counts with all elements of its storage."""
    scan_sizes: tuple[ScanSize, ...] = ()
    """Of the selective scans that ran, each once."""

    @property
    def scans(self) -> bool:
        """Whether a selective scan ran."""
        return bool(self.scan_sizes)

    def to_record(self) -> TensorRecord:
        """The fields that a row stores."""
        return TensorRecord(peak_bytes=self.peak_bytes, parts_bytes=self.parts_bytes)


def tensor_peak(variant: Variant, cell: Cell, in_chans: int = 3) -> TensorPeak:
    """The tensor peak of one iteration of a cell.

    Arguments:
        variant: the model that the cell measures.
        cell: mode, dtype, device, batch size and memory format.
        in_chans: channels of the images.

    Raises:
        Exception: any error of a model that cannot run without data.
    """
    return _execute(_built(variant, cell), cell, in_chans, _train).peak()


def meta_model(variant: Variant, output: Output, resolution: Resolution, num_classes: int) -> nn.Module:
    """A model, or its backbone, without memory, for `planned_trace`."""
    with torch.device("meta"):
        return build_output(variant, output, resolution=resolution, num_classes=num_classes)


def _built(variant: Variant, cell: Cell) -> nn.Module:
    return meta_model(variant, cell.output, cell.resolution, cell.num_classes)


def planned_trace(
    variant: Variant,
    cell: Cell,
    capability: Capability | None = None,
    in_chans: int = 3,
    model: nn.Module | None = None,
) -> Trace:
    """The storages of one iteration of a cell on a device that need not be there.

    Arguments:
        variant: what the cell would measure.
        cell: as for `tensor_peak`; its device is "cpu" or "cuda".
        capability: of the NVIDIA GPU; None on the CPU.
        in_chans: channels of the images.
        model: what `meta_model` gives for the cell, if it is there already; its mode is changed, and gradient
            checkpointing and folding change it for good.

    Raises:
        Exception: whatever a model raises that cannot run without data.
    """
    model = _built(variant, cell) if model is None else model
    if capability is None:
        return _execute(model, cell, in_chans, partial(_train_planned, planned=False)).trace.build()
    train = partial(_train_planned, planned=True)
    return _execute(model, cell, in_chans, train, lambda: planned_device(capability)).trace.build()


def _execute(
    model: nn.Module,
    cell: Cell,
    in_chans: int,
    train: Callable[[Cell, nn.Module, Tensor, _Storages], None],
    on: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> _Storages:
    """One iteration by shape.

    Arguments:
        model: on the meta device.
        cell: under which condition.
        in_chans: channels of the images.
        train: executes a training step.
        on: stands for the device while the model runs.
    """
    model.train(cell.mode == "train")
    if cell.fuse:
        fold_batch_norms(model, cell.resolution)
    if cell.grad_checkpointing:
        checkpoint_gradients(model, cell.model)
    with FakeTensorMode(allow_non_fake_inputs=True), on():
        shadow = _on_device(model, cell)
        shape = (cell.batch_size, in_chans, cell.height, cell.width)
        images = _like(torch.empty(shape, device="meta"), cell)
        storages = _Storages(shadow, images)
        if cell.mode == "train":
            train(cell, shadow, images, storages)
        else:
            with torch.no_grad(), storages:  # inference mode would hide inner operators
                shadow(images)
    return storages


def _train(cell: Cell, model: nn.Module, images: Tensor, storages: _Storages) -> None:
    """One training step of the steady state, whose optimizer has its state from an earlier step."""
    optimizer = make_optimizer(model)
    storages.watch_gradients(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    storages.take_state(optimizer)
    with storages:
        step = TrainStep(cell, model, images, optimizer)
        step.forward()
        step.backward()
        optimizer.step()


def _train_planned(cell: Cell, model: nn.Module, images: Tensor, storages: _Storages, planned: bool) -> None:
    """The same with what AdamW takes in place of what it does, which is most of the operators.

    Arguments:
        cell: the condition.
        model: in train mode.
        images: one batch.
        storages: adds up.
        planned: whether the device is not there, so that autograd's engine cannot run.
    """
    optimizer = make_optimizer(model)
    storages.watch_gradients(model)
    give_state(optimizer)
    storages.take_state(optimizer)
    with storages:
        step = TrainStep(cell, model, images, optimizer)
        if planned:
            planned_step(step)
        else:
            step.forward()
            step.backward()
        step_temporaries(model, together=planned)


def _on_device(model: nn.Module, cell: Cell) -> nn.Module:
    """A copy of a model from the meta device with fake tensors of the cell's device."""
    return copy_with(model, partial(_like, cell=cell))


def _like(tensor: Tensor, cell: Cell) -> Tensor:
    """A fake tensor of the cell's device, dtype (float32 in training) and memory format."""
    if not is_dense(tensor):
        raise NotImplementedError(f"a tensor has the layout {tensor.layout}, which has no fake form")
    dtype = DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32
    fake = torch.empty(
        tensor.shape,
        dtype=dtype if tensor.is_floating_point() else tensor.dtype,
        device=torch.device(cell.device),
    )
    last = cell.memory_format == "channels_last" and fake.ndim == 4
    return fake.contiguous(memory_format=torch.channels_last) if last else fake


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the live storages by part, now and at the peak.

    The constructor assigns existing storages to their parts.  A storage that an operator makes while the mode
    is active is an activation until it is assigned to the gradients or the optimizer's state.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[Any, str, int]] = {}
        self._bytes = Counter(dict.fromkeys((*HELD, "activations"), 0))
        self._peak = self._bytes.copy()
        self._convolutions: dict[str, int] = {}
        self._largest = 0
        self._scans: dict[ScanSize, None] = {}
        self.trace = TraceBuilder()
        for parameter in model.parameters():
            self._take(parameter, "weights")
        for buffer in model.buffers():
            self._take(buffer, "buffers")
        self._take(images, "input")

    def watch_gradients(self, model: nn.Module) -> None:
        """Book gradients as such once they are a parameter's."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.take_gradient)  # type: ignore[no-untyped-call]

    def take_gradient(self, parameter: Tensor) -> None:
        """Assign the storage of a parameter's gradient to the gradients."""
        if parameter.grad is not None:
            self._take(parameter.grad, "gradients")

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Assign the tensors of the optimizer's state to the optimizer."""
        for tensor in tree_leaves([list(state.values()) for state in optimizer.state.values()]):
            if isinstance(tensor, Tensor):
                self._take(tensor, "optimizer")

    def peak(self) -> TensorPeak:
        """The peak over all operators so far."""
        return TensorPeak(
            self._peak.total(), dict(self._peak), self._convolutions, self._largest, tuple(self._scans)
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take(tensor)
        inside = inner_bytes(func, args)
        if inside:
            self.trace.pass_through(inside)
        total = self._bytes.total()
        if total > self._peak.total():
            self._peak = self._bytes.copy()
        if is_convolution(func):
            name = signature(func, args)
            self._convolutions[name] = max(total, self._convolutions.get(name, 0))
        if func._overloadpacket._qualified_op_name == SCAN:
            self._scans[_scan_size(args[0], args[2], args[3])] = None
        return result

    def _take(self, tensor: Tensor, part: str | None = None) -> None:
        """Count a tensor's storages under a part; a storage that is counted already moves to a given part."""
        for storage in storages(tensor):
            self._largest = max(self._largest, tensor.numel(), storage.nbytes() // tensor.element_size())
            self._take_storage(storage, part)

    def _take_storage(self, storage: torch.UntypedStorage, part: str | None) -> None:
        key = storage._cdata
        known = self._alive.get(key)
        if known is not None and part in (None, known[1]):
            return
        if known is not None:
            self._bytes[known[1]] -= known[2]
        booked, size = part or "activations", storage.nbytes()

        def gone(_: object, key: int = key) -> None:
            _, part, size = self._alive.pop(key)
            self._bytes[part] -= size
            self.trace.free(key)

        self.trace.take(key, booked, size)
        reference = known[0] if known is not None else weakref.ref(storage, gone)
        self._alive[key] = (reference, booked, size)
        self._bytes[booked] += size


def _scan_size(x: Tensor, rate: Tensor, B: Tensor) -> ScanSize:
    """Of a scan of x (batch, channels, length) with rate (channels, states), and the groups that B has."""
    return ScanSize(x.shape[1], x.shape[2], rate.shape[1], grouped(B).shape[1])


def is_convolution(func: Any) -> bool:
    """Whether an operator is a convolution or its backward."""
    return func._overloadpacket._qualified_op_name in ("aten::convolution", "aten::convolution_backward")


def signature(func: Any, args: tuple[Any, ...]) -> str:
    """A convolution's name, shapes and numbers, which identify it across two runs of an iteration."""
    words = [
        f"{tuple(value.shape)}{value.dtype}" if isinstance(value, Tensor) else str(value) for value in args
    ]
    return " ".join([str(func), *words])
