"""The training loop, the same for every family, for one or several processes; it can be killed and resumed.

accelerate handles devices, processes, mixed precision and gradient exchange; timm provides optimiser,
schedule, mixup and augmentation.

**An update** uses `recipe.batch_size` images over all processes and their micro-batches; its loss is the mean
over these images, independent of the split into micro-batches.

**Random numbers** are functions of a few integers: the order of images depends on seed and epoch, the
augmentation of an image on seed, epoch and image, and all else on seed, update and process.  A training that
is killed and resumes from its checkpoint therefore ends with the same weights, bit for bit, as an
uninterrupted one, on a CPU with the same versions and number of threads.

Nothing is selected on the held-out images: the loop evaluates `WATCHED_IMAGES` of them after each epoch and
all of them once at the end, and the last weights are the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from math import ceil, inf, isfinite, log
from typing import Any

import torch
from torch import Tensor, nn

from longvis_bench.data.loader import Batch, Loader, named_worker_deaths
from longvis_bench.errors import LongvisError
from longvis_bench.measure.accuracy import Accuracy
from longvis_bench.measure.numerics import tf32
from longvis_bench.ops.model_tensors import to_memory_format
from longvis_bench.training.augment import BatchAugment, picture_augment
from longvis_bench.training.checkpoint import Checkpoint, Position, read_checkpoint, save_checkpoint
from longvis_bench.training.evaluate import shared_accuracy
from longvis_bench.training.job import Job, TrainProgress, TrainReport
from longvis_bench.training.setup import (
    make_accelerator,
    make_optimizer,
    make_schedule,
    own_device,
    reproducible,
    require_division,
    seed_everything,
    synchronised,
    with_drop_path,
)
from longvis_bench.weights.classes import stored_order
from longvis_bench.weights.classifier import classifier_dims, order_classes
from longvis_bench.weights.header import read_header
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.store import round_weights

WATCHED_IMAGES = 128
DIVERGED = 10.0
"""Training stops if the loss exceeds this multiple of the loss of guessing, log(classes)."""


def train(
    job: Job,
    on_progress: Callable[[TrainProgress], object] = lambda progress: None,
    on_note: Callable[[str], object] = lambda sentence: None,
) -> TrainReport | None:
    """Train a model, or resume from its checkpoint.

    Arguments:
        job: the model, the data and the recipe.
        on_progress: called by the main process after every update and at the end of every epoch.
        on_note: called by the main process with a sentence on the loader's workers.

    Returns:
        The trained model in the main process; None in all others.

    Raises:
        LongvisError: the loss is not finite or far too large (the message has the step), or the recipe does
            not suit the devices, or a process that loads images was killed.
        Unsupported: the device does not support the recipe's precision.
        IllegalSize: the model cannot take the resolution.
        CheckpointError: the initial weights belong to another model, or the checkpoint is damaged.
    """
    rounding, device = job.recipe.precision == "tf32", torch.device(job.device)
    with named_worker_deaths(), reproducible(job.seed, device), tf32(rounding):
        trainer = _Trainer(job, on_progress)
        if trainer.loader.note is not None and trainer.accelerator.is_main_process:
            on_note(trainer.loader.note)
        while trainer.position.epoch <= job.recipe.epochs:
            trainer.epoch()
        return trainer.report()


class _Trainer:
    """A model with its optimiser, schedule and loader, and the position in its training."""

    def __init__(self, job: Job, on_progress: Callable[[TrainProgress], object]) -> None:
        self.job, self.recipe, self.on_progress = job, job.recipe, on_progress
        self.accelerator = make_accelerator(job)
        self.device = own_device(job, self.accelerator)
        self.loader = self._loader()
        self.accumulated = ceil(self.update_images / self.micro_batch)
        self.updates = self._updates()
        self.steps = job.recipe.epochs * self.updates
        model = self._model()
        self.optimizer = self.accelerator.prepare_optimizer(
            make_optimizer(model, job.recipe), device_placement=False
        )
        self.schedule = make_schedule(self.optimizer, job.recipe, self.updates)
        self.model = self.accelerator.prepare_model(model, device_placement=False)
        self.augment = BatchAugment(job.recipe, job.data.num_classes, self.device)
        self.position = self._resume()
        self.saved = time.monotonic()

    # Setup ---------------------------------------------------------------------------------------------

    @property
    def update_images(self) -> int:
        """Images per update in this process."""
        return self.recipe.batch_size // int(self.accelerator.num_processes)

    @property
    def micro_batch(self) -> int:
        """Images per forward pass in this process."""
        return min(self.job.micro_batch or self.update_images, self.update_images)

    def _loader(self) -> Loader:
        processes = self.accelerator.num_processes
        require_division(self.recipe, processes, self.micro_batch)
        return Loader(
            self.job.data,
            "train",
            resolution=self.job.resolution,
            batch_size=self.micro_batch,
            seed=self.job.seed,
            workers=self.job.workers,
            device=self.device,
            augment=picture_augment(self.recipe, self.job.resolution),
            rank=self.accelerator.process_index,
            world_size=processes,
        )

    def _updates(self) -> int:
        """Updates per epoch."""
        images = self.job.data.size("train")
        updates = (
            images // self.recipe.batch_size if self.recipe.mixes else ceil(images / self.recipe.batch_size)
        )
        if updates == 0:
            raise LongvisError(
                f"{self.job.data.name} has {images} training images, fewer than the {self.recipe.batch_size} "
                "of one update, and mixing needs full updates; give a smaller --batch."
            )
        return updates

    def _model(self) -> nn.Module:
        job = self.job
        variant = with_drop_path(job.variant, self.recipe.drop_path)
        with self.device:
            model = variant.build(resolution=job.resolution, num_classes=job.data.num_classes)
        self.fresh: tuple[str, ...] = ()
        if job.initial is not None:
            heads = classifier_dims(variant, job.resolution, job.data.num_classes)
            loaded = load_weights(model, job.initial, strict=False, heads=heads)
            order = stored_order(read_header(job.initial).metadata, job.data.classes)
            if order is not None and not loaded.random:
                order_classes(model, heads, order)
            self.fresh = (*loaded.missing, *loaded.random)
        if self.recipe.sync_batch_norm and self.accelerator.num_processes > 1:
            model = synchronised(model, self.device)
        return to_memory_format(model, torch.channels_last)

    def _resume(self) -> Position:
        found = read_checkpoint(self.job.checkpoint, self.device) if self.job.checkpoint is not None else None
        if found is None:
            return Position()
        for name, holder in self._holders().items():
            holder.load_state_dict(found.states[name])
        return found.position

    def _holders(self) -> dict[str, Any]:
        """Objects whose state a checkpoint stores, by name."""
        holders = {
            "model": self.accelerator.unwrap_model(self.model),
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        scaler = self.accelerator.scaler
        return holders if scaler is None else {**holders, "scaler": scaler}

    # Updates -------------------------------------------------------------------------------------------

    def epoch(self) -> None:
        """Train the rest of an epoch, then evaluate on held-out images."""
        position, before_waiting = self.position, self.position.waited_s
        batches = self.loader.epoch(position.epoch, start=position.update * self.accumulated)
        self.model.train()
        while position.update < self.updates:
            started = time.perf_counter()
            loss, images = self.update(batches)
            position.update += 1
            position.seen, position.loss_sum = position.seen + images, position.loss_sum + images * loss
            position.spent_s += time.perf_counter() - started
            position.waited_s = before_waiting + self.loader.waited_s
            progress = self.progress(loss)
            position.curve.append(
                [progress.epoch, progress.step, loss, progress.learning_rate, progress.images_s]
            )
            self._tell(progress)
            self._keep_now_and_then()
        self._end_epoch()

    def _end_epoch(self) -> None:
        position = self.position
        top1 = self.measure(WATCHED_IMAGES).top1
        end = self.progress(position.loss_sum / position.seen, top1=top1)
        self.position = Position(
            epoch=position.epoch + 1, curve=position.curve, history=[*position.history, asdict(end)]
        )
        self._keep()
        self._tell(end)

    def update(self, batches: Iterator[Batch]) -> tuple[float, int]:
        """One step of the optimiser; returns its mean loss and number of images, over all processes."""
        step = self.step
        self.schedule.step_update(step)
        seed_everything(self.job.seed, step, self.accelerator.process_index)
        parts = self._parts()
        total = torch.zeros((), device=self.device)
        for number, size in enumerate(parts):
            batch = next(batches)
            last = number + 1 == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total += self._learn(batch, share=size / sum(parts))
        loss = float(self.accelerator.reduce(total, "mean"))
        self._check("loss", loss, DIVERGED * log(self.job.data.num_classes))
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm or inf))
        if self.accelerator.scaler is None:  # a scaler handles an overflow by a smaller scale
            self._check("norm of the gradients", norm, inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, sum(parts) * self.accelerator.num_processes

    def _parts(self) -> list[int]:
        """Images per micro-batch of the current update in this process."""
        processes = self.accelerator.num_processes
        images = ceil(self.job.data.size("train") / processes) - self.position.update * self.update_images
        images = min(images, self.update_images)
        whole, rest = divmod(images, self.micro_batch)
        return [self.micro_batch] * whole + [rest] * (rest > 0)

    def _learn(self, batch: Batch, share: float) -> Tensor:
        """Add the gradients of one micro-batch to those of the update; return its part of the loss."""
        seeds = [(self.job.seed, self.position.epoch, index) for index in batch.indices]
        images, targets = self.augment(batch.images, batch.labels, seeds)
        with self.accelerator.autocast():
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = -(targets * logits.float().log_softmax(dim=1)).sum(dim=1).mean() * share
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def _check(self, what: str, value: float, limit: float) -> None:
        """Raise if a value shows that training has diverged."""
        if isfinite(value) and value <= limit:
            return
        raise LongvisError(
            f"training diverged at step {self.step + 1} of {self.steps}: the {what} is {value:.3g} "
            f"at a learning rate of {self.learning_rate:.2g}; lower the recipe's learning_rate, "
            "lengthen its warmup or lower its clip_norm."
        )

    # Progress and checkpoints ---------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Finished updates of all epochs."""
        return (self.position.epoch - 1) * self.updates + self.position.update

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def progress(self, loss: float, top1: float | None = None) -> TrainProgress:
        """The progress after an update, or with `top1` after an epoch."""
        position = self.position
        return TrainProgress(
            epoch=position.epoch,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=loss,
            learning_rate=self.learning_rate,
            images_s=position.seen / position.spent_s,
            train_s=position.spent_s,
            waited_s=position.waited_s,
            left_s=position.spent_s / position.update * (self.steps - self.step),
            top1=top1,
        )

    def _tell(self, progress: TrainProgress) -> None:
        if self.accelerator.is_main_process:
            self.on_progress(progress)

    def _keep_now_and_then(self) -> None:
        if time.monotonic() - self.saved > self.job.checkpoint_s:
            self._keep()

    def _keep(self) -> None:
        """Write the checkpoint."""
        if self.job.checkpoint is not None and self.accelerator.is_main_process:
            states = {name: holder.state_dict() for name, holder in self._holders().items()}
            save_checkpoint(self.job.checkpoint, Checkpoint(position=self.position, states=states))
        self.saved = time.monotonic()

    # Result --------------------------------------------------------------------------------------------

    def measure(self, images: int) -> Accuracy:
        """Accuracy in strict float32 on evenly spaced held-out images; all processes must call this."""
        with tf32(False):
            return shared_accuracy(
                self.accelerator.unwrap_model(self.model),
                self.job.data,
                self.accelerator,
                resolution=self.job.resolution,
                images=images,
                batch_size=self.micro_batch,
                device=self.device,
            )

    def report(self) -> TrainReport | None:
        """The result in the main process, else None; all processes take part in the evaluation."""
        model = self.accelerator.unwrap_model(self.model)
        round_weights(model)
        accuracy = self.measure(self.job.data.size("val"))
        if not self.accelerator.is_main_process:
            return None
        return TrainReport(
            model=model.eval(),
            job=self.job,
            processes=self.accelerator.num_processes,
            history=tuple(TrainProgress(**epoch) for epoch in self.position.history),
            curve=tuple(tuple(update) for update in self.position.curve),
            accuracy=accuracy,
            fresh=self.fresh,
        )
