"""One iteration of a cell, which is what is timed: a forward in eval mode, or a whole training step.

For inference the model's parameters have the cell's dtype.  For training they stay float32 and the forward
runs under autocast, as is usual in mixed-precision training.  In fp16 a GradScaler scales the loss, so that
small gradients do not underflow; the optimizer step then includes unscaling and the check for infinities.
Gradients are freed after each step, which is PyTorch's default.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longvis_bench.errors import Unsupported
from longvis_bench.measure.validity.outputs import Form, Logits, Outputs, form_of
from longvis_bench.records import Cell

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Step = Callable[[], object]


def make_iteration(
    cell: Cell,
    model: nn.Module,
    images: Tensor,
    optimizer: torch.optim.Optimizer | None,
    no_gradients: Callable[[], AbstractContextManager[object]] = torch.inference_mode,
    form: Form | None = None,
) -> tuple[Step, dict[str, Step]]:
    """Make one iteration, and in train mode its parts in the order they must run.

    Arguments:
        cell: gives mode, dtype, batch size and number of classes.
        model: on its device, in train or eval mode.
        images: (batch, channels, height, width) on the same device.
        optimizer: updates the model's parameters; None for inference.
        no_gradients: makes the context in which an inference forward runs.
        form: of what the model returns; None for the cell's.

    Returns:
        The iteration, and name -> part of a training step; no parts for inference.
    """
    wanted = form or form_of(cell, model, images)
    if optimizer is None:

        def infer() -> object:
            with no_gradients():
                found = model(images)
                wanted.parts(found, cell.batch_size)
                return found

        return infer, {}
    step = TrainStep(cell, model, images, optimizer, wanted)
    return step.run, {"forward": step.forward, "backward": step.backward, "optimizer": step.optimize}


class TrainStep:
    """Forward, backward and optimizer step on one batch with random labels.

    The loss of maps is the sum of their mean absolute values: its gradient reaches every position of every
    map, as that of a detector's neck does, and it costs one pass over each map.
    """

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        images: Tensor,
        optimizer: torch.optim.Optimizer,
        form: Form | None = None,
    ) -> None:
        self.cell, self.model, self.images, self.optimizer = cell, model, images, optimizer
        self.form = form or form_of(cell, model, images)
        self.labels = torch.randint(cell.num_classes, (cell.batch_size,), device=images.device)
        self.loss = torch.zeros(())
        self.scaler = torch.amp.GradScaler(images.device.type, enabled=cell.dtype == "fp16")

    def forward(self) -> None:
        """Logits and cross-entropy, or the maps and their loss."""
        with _autocast(self.cell):
            found = self.form.parts(self.model(self.images), self.cell.batch_size)
        self.loss = self._loss(found)

    def _loss(self, found: Outputs) -> Tensor:
        if isinstance(self.form, Logits):
            return F.cross_entropy(found[0].float(), self.labels)
        return torch.stack([part.abs().mean().float() for part in found]).sum()

    def backward(self) -> None:
        """Gradients of all parameters."""
        self.scaler.scale(self.loss).backward()  # type: ignore[no-untyped-call]

    def optimize(self) -> None:
        """Update the weights and free the gradients."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def run(self) -> None:
        """Run the three parts in order."""
        self.forward()
        self.backward()
        self.optimize()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, whose state is twice the size of the weights; its learning rate hardly changes them."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6)


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Have a model store only its blocks' inputs and recompute other activations in the backward.

    Raises:
        Unsupported: the model has no method `set_grad_checkpointing`, timm's name for it, or it refuses.
    """
    setter = getattr(model, "set_grad_checkpointing", None)
    try:
        if setter is None:
            raise AssertionError
        setter(True)
    except AssertionError as error:
        raise Unsupported(
            f"{name} has no gradient checkpointing (no set_grad_checkpointing of its own); "
            "leave out --grad-checkpointing or try a smaller batch."
        ) from error


def _autocast(cell: Cell) -> AbstractContextManager[object]:
    if DTYPES[cell.dtype] == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(cell.device).type, dtype=DTYPES[cell.dtype])
