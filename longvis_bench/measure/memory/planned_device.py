"""An NVIDIA GPU that is not there, as far as executing shapes needs one.

Fake tensors of `cuda` run without a driver, except for four things, which are replaced here: attention's
kernel is chosen by asking the GPU (`ops/planned_gpu.py`), autocast turns itself off, autograd's engine asks
for streams (`plain_backward.py`), and AdamW's form for GPUs takes no fake tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from longvis_bench.measure.iteration import TrainStep
from longvis_bench.measure.memory.plain_backward import backward
from longvis_bench.ops.planned_gpu import Capability, plan_for

_ROWS, _CHANNELS = 128, 32
"""Multiples that attention's backward pads its queries and channels to."""
_FLOAT = 4
_ACCUMULATES = (
    "aten::_scaled_dot_product_flash_attention_backward",
    "aten::_scaled_dot_product_cudnn_attention_backward",
)
_EFFICIENT = "aten::_scaled_dot_product_efficient_attention_backward"


@contextmanager
def planned_device(capability: Capability) -> Iterator[None]:
    """Have fake tensors of `cuda` run as on a GPU of this compute capability; for use in a FakeTensorMode."""
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(plan_for(capability))
        yield


def planned_step(step: TrainStep) -> None:
    """Forward and backward on the planned device, without fp16's scaler, which has a few scalars only."""
    step.scaler = torch.amp.GradScaler("cuda", enabled=False)
    step.forward()
    backward(_take_graph(step), torch.ones_like(step.loss))


def _take_graph(step: TrainStep) -> Any:
    """The graph of the loss, which the step no longer holds."""
    root, step.loss = step.loss.grad_fn, step.loss.detach()
    return root


def give_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state that it has after its first step: two moments of each parameter."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                moments = ("exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {name: torch.empty_like(parameter) for name in moments}


def step_temporaries(model: nn.Module, *, together: bool) -> None:
    """Make and drop what AdamW's step takes besides its state: square roots of second moments.

    Arguments:
        model: whose parameters are updated.
        together: of all parameters at once, as on a GPU; else of one after the other, as on a CPU.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if together:
        roots = [torch.empty_like(p) for p in parameters]
    elif parameters:
        largest = max(parameters, key=torch.numel)
        roots = [torch.empty_like(largest), torch.empty_like(largest)]
    else:
        return
    del roots


def inner_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that an attention's backward takes inside itself, from the shapes of its arguments.

    The flash kernel adds up the queries' gradient in float32, of padded queries and channels, and keeps a sum
    per query; cuDNN's is taken to do the same.  The memory-efficient one adds up all three in float32 where
    they are 16 bits wide.  (aten/src/ATen/native/transformers/cuda, as of torch 2.15.)
    """
    name = func._overloadpacket._qualified_op_name
    if name in _ACCUMULATES:
        query: Tensor = args[1]
        batch, heads, tokens, channels = query.shape
        rows = -(-tokens // _ROWS) * _ROWS
        width = -(-channels // _CHANNELS) * _CHANNELS
        return batch * heads * rows * (width + 1) * _FLOAT
    if name == _EFFICIENT:
        halves: list[Tensor] = [t for t in args[1:4] if t.element_size() < _FLOAT]
        return sum(t.numel() for t in halves) * _FLOAT
    return 0
