"""What is timed: one iteration of a cell, a forward in eval mode or a whole training step.

In inference the model itself is in the cell's dtype.  In training its weights stay float32 and the forward
runs under autocast, as mixed-precision training does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench.measure.validity import check_shape
from longvis_bench.records import Cell

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Step = Callable[[], object]


def make_iteration(
    cell: Cell, model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer | None
) -> tuple[Step, dict[str, Step]]:
    """One iteration, and in train mode its parts in the order they must run.

    Arguments:
        cell: mode and dtype.
        model: on the device, in the mode it is timed in.
        images: (batch, channels, height, width) on the same device.
        optimizer: of the model's parameters, in train mode.
    """
    if optimizer is None:

        def infer() -> Tensor:
            with torch.inference_mode():
                return check_shape(model(images), cell.batch_size, cell.num_classes)

        return infer, {}
    step = TrainStep(cell, model, images, optimizer)
    return step.run, {"forward": step.forward, "backward": step.backward, "optimizer": step.optimize}


class TrainStep:
    """Forward, backward and optimizer step on one batch with random labels."""

    def __init__(
        self, cell: Cell, model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        self.cell, self.model, self.images, self.optimizer = cell, model, images, optimizer
        self.labels = torch.randint(cell.num_classes, (cell.batch_size,), device=images.device)
        self.loss = torch.zeros(())

    def forward(self) -> None:
        """Logits and cross-entropy."""
        with _autocast(self.cell):
            logits = check_shape(self.model(self.images), self.cell.batch_size, self.cell.num_classes)
        self.loss = F.cross_entropy(logits.float(), self.labels)

    def backward(self) -> None:
        """Gradients of all parameters, added to what is there."""
        self.loss.backward()  # type: ignore[no-untyped-call]

    def optimize(self) -> None:
        """Update, and gradients back to zero; their memory stays, as it does between real steps."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def run(self) -> None:
        """All three."""
        self.forward()
        self.backward()
        self.optimize()


def _autocast(cell: Cell) -> AbstractContextManager[object]:
    if cell.dtype == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(cell.device).type, dtype=DTYPES[cell.dtype])
