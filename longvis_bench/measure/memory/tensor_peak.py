"""Peak bytes of the tensors alone, found without running anything: the iteration executed by shape.

The model's shadow has fake tensors of the cell's device: shapes, dtypes and layouts without memory.  One
iteration runs on them, so that the same kernels are picked as on the device (fused attention included), and a
dispatch mode adds up the storages that are alive, each until its last reference is gone.  In train mode that
takes in what autograd saves for the backward, gradients, and the optimizer's state and temporaries.

What a kernel takes inside itself and what an allocator keeps are not tensors: `memory.py` measures those, and
a difference between the two is workspace, allocator and threads' caches.  Because nothing is allocated, the
tensor peak is also known where the cell itself runs out of memory.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
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
from longvis_bench.ops.fuse_conv_bn import fold_batch_norms
from longvis_bench.ops.model_tensors import copy_with, is_dense, storages
from longvis_bench.records import Cell, TensorRecord
from longvis_bench.registry.registry import Variant


@dataclass(frozen=True)
class TensorPeak:
    """What was alive when most was."""

    peak_bytes: int
    parts_bytes: dict[str, int]
    """Weights, buffers, gradients, optimizer, input and activations alive at that moment; they sum to it."""
    convolutions: dict[str, int]
    """`signature` of a convolution -> most bytes alive when it had just run."""
    largest: int
    """Elements of the largest tensor, a view of fewer numbers among them."""
    scans: bool = False
    """Whether a selective scan ran."""

    def to_record(self) -> TensorRecord:
        """The part of it that a row stores."""
        return TensorRecord(peak_bytes=self.peak_bytes, parts_bytes=self.parts_bytes)


def tensor_peak(variant: Variant, cell: Cell, in_chans: int = 3) -> TensorPeak:
    """The tensor peak of one iteration of a cell.

    Arguments:
        variant: what the cell measures.
        cell: mode, dtype, device, batch and layout.
        in_chans: channels of the images.

    Raises:
        Exception: whatever a model raises that cannot run without data.
    """
    with torch.device("meta"):
        model = variant.build(resolution=cell.resolution, num_classes=cell.num_classes)
    model.train(cell.mode == "train")
    if cell.fuse:
        fold_batch_norms(model, cell.resolution)
    if cell.grad_checkpointing:
        checkpoint_gradients(model, cell.model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shadow = _on_device(model, cell)
        shape = (cell.batch_size, in_chans, cell.resolution, cell.resolution)
        images = _like(torch.empty(shape, device="meta"), cell)
        storages = _Storages(shadow, images)
        if cell.mode == "train":
            _train(cell, shadow, images, storages)
        else:
            with torch.no_grad(), storages:  # inference mode keeps as much, but would hide operators inside
                shadow(images)
    return storages.peak()


def _train(cell: Cell, model: nn.Module, images: Tensor, storages: _Storages) -> None:
    """One step of the steady state: the optimizer has its state from a step before."""
    optimizer = make_optimizer(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(storages.take_gradient)  # type: ignore[no-untyped-call]
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    storages.take_state(optimizer)
    with storages:
        step = TrainStep(cell, model, images, optimizer)
        step.forward()
        step.backward()
        optimizer.step()


def _on_device(model: nn.Module, cell: Cell) -> nn.Module:
    """A copy of a model on the meta device whose tensors are fakes of the cell's device."""
    return copy_with(model, partial(_like, cell=cell))


def _like(tensor: Tensor, cell: Cell) -> Tensor:
    """A fake of the cell's device, dtype (float32 in training) and memory format."""
    if not is_dense(tensor):
        raise NotImplementedError(f"a tensor has the layout {tensor.layout}, which has no form without data")
    dtype = DTYPES[cell.dtype] if cell.mode == "infer" else torch.float32
    fake = torch.empty(
        tensor.shape,
        dtype=dtype if tensor.is_floating_point() else tensor.dtype,
        device=torch.device(cell.device),
    )
    last = cell.memory_format == "channels_last" and fake.ndim == 4
    return fake.contiguous(memory_format=torch.channels_last) if last else fake


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages alive, by part, and what they were when they were most.

    Storages that exist before are taken by their part; all that an operator makes while the mode is active is
    an activation until it is taken as a gradient or as the optimizer's state.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[Any, str, int]] = {}
        self._bytes = Counter(dict.fromkeys((*HELD, "activations"), 0))
        self._peak = self._bytes.copy()
        self._convolutions: dict[str, int] = {}
        self._largest = 0
        self._scans = False
        for parameter in model.parameters():
            self._take(parameter, "weights")
        for buffer in model.buffers():
            self._take(buffer, "buffers")
        self._take(images, "input")

    def take_gradient(self, parameter: Tensor) -> None:
        """Book what a parameter's gradient holds."""
        if parameter.grad is not None:
            self._take(parameter.grad, "gradients")

    def take_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Book what the optimizer keeps."""
        for tensor in tree_leaves([list(state.values()) for state in optimizer.state.values()]):
            if isinstance(tensor, Tensor):
                self._take(tensor, "optimizer")

    def peak(self) -> TensorPeak:
        """The most that was alive together."""
        return TensorPeak(
            self._peak.total(), dict(self._peak), self._convolutions, self._largest, self._scans
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take(tensor)
        total = self._bytes.total()
        if total > self._peak.total():
            self._peak = self._bytes.copy()
        if is_convolution(func):
            name = signature(func, args)
            self._convolutions[name] = max(total, self._convolutions.get(name, 0))
        self._scans |= func._overloadpacket._qualified_op_name == SCAN
        return result

    def _take(self, tensor: Tensor, part: str | None = None) -> None:
        """Count a storage under a part; one that is counted already changes its part if one is given."""
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

        reference = known[0] if known is not None else weakref.ref(storage, gone)
        self._alive[key] = (reference, booked, size)
        self._bytes[booked] += size


def is_convolution(func: Any) -> bool:
    """Whether an operator is a convolution or its backward."""
    return func._overloadpacket._qualified_op_name in ("aten::convolution", "aten::convolution_backward")


def signature(func: Any, args: tuple[Any, ...]) -> str:
    """A convolution's name, shapes and numbers: what two runs of one iteration know it by."""
    words = [
        f"{tuple(value.shape)}{value.dtype}" if isinstance(value, Tensor) else str(value) for value in args
    ]
    return " ".join([str(func), *words])
