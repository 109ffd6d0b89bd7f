"""Recipes: all settings of a training, in one frozen object that is stored with the weights.

All families of a comparison use one recipe, so that only the architecture differs.  The shipped weights were
trained with `quick`.  Optimisers and schedules are timm's and have timm's names.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longvis_bench.errors import LongvisError, UnknownName


class Recipe(BaseModel):
    """The settings of a training.  A setting that is off by default is off unless the recipe names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    epochs: int = Field(ge=1)
    """Passes over the training images, each in a new random order."""
    batch_size: int = Field(ge=1)
    """Images per update, over all devices and accumulated micro-batches; the last update of an epoch has the
    remaining images, and with mixup or cutmix it is left out."""
    optimizer: str
    """Name for `timm.optim.create_optimizer_v2`."""
    learning_rate: float = Field(gt=0)
    """Highest learning rate, reached after warm-up, for `batch_size` images per update; see `with_batch`."""
    betas: tuple[float, float] | None = None
    """Betas of Adam and similar optimisers; None for the optimiser's defaults."""
    weight_decay: float = Field(ge=0)
    """Weight decay of tensors with two or more dimensions, except those that the model exempts."""
    schedule: str = "cosine"
    """Name for `timm.scheduler.create_scheduler_v2`; the schedule is stepped every update."""
    warmup: float = Field(ge=0, lt=1)
    """Share of all updates in which the learning rate rises linearly from nearly 0."""
    final_learning_rate: float = Field(ge=0)
    """Learning rate at the end of the schedule."""
    label_smoothing: float = Field(ge=0, lt=1)
    """Share of the target that is distributed over all classes in the cross-entropy."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradients over all parameters, to which they are scaled down; None for no limit."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block, growing linearly from 0 at the first."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32 is strict in products and convolutions, tf32 rounds the inputs of both (NVIDIA GPUs), bf16 and
    fp16 use autocast.  Weights and optimiser stay in float32."""
    sync_batch_norm: bool = False
    """Compute batch norms over the batches of all devices; CUDA only."""
    shift: float = Field(0.0, ge=0, lt=0.5)
    """Shift each image by up to this share of its side along each axis, uniformly, repeating its border."""
    crop_scale: tuple[float, float] | None = None
    """Crop a random part of each image with this share of its area, and resize it; None for no crop."""
    flip: float = Field(0.0, ge=0, le=1)
    """Share of images that are mirrored left to right."""
    auto_augment: str | None = None
    """A policy in timm's notation, e.g. `rand-m9-mstd0.5-inc1`."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Share of images in which a rectangle is replaced by noise."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup's beta distribution; 0 for none."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of cutmix's beta distribution; 0 for none."""
    mixup_switch: float = Field(0.5, ge=0, le=1)
    """Share of batches with cutmix instead of mixup, if both are on."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed within a batch."""
        return self.mixup > 0 or self.cutmix > 0

    def with_batch(self, batch_size: int | None) -> Recipe:
        """The recipe for another batch size: learning rates scale in proportion (arXiv:1706.02677)."""
        if batch_size is None or batch_size == self.batch_size:
            return self
        factor = batch_size / self.batch_size
        return self.model_copy(
            update={
                "batch_size": batch_size,
                "learning_rate": self.learning_rate * factor,
                "final_learning_rate": self.final_learning_rate * factor,
            }
        )

    def describe(self) -> str:
        """All fields in one line, except those that are off."""
        fields = self.model_dump(exclude={"name"})
        if not (self.mixup and self.cutmix):
            del fields["mixup_switch"]
        return f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in fields.items() if value)


# Chosen on the training images alone (training on 1,120, evaluation on the other 280), at 256 px, 8 epochs,
# one seed: 2e-3 was better than 1e-3 for vit-n (63 against 37 %), convnext-n (99, 97) and a LongViT (73, 71).
QUICK = Recipe(
    name="quick",
    epochs=10,
    batch_size=16,
    optimizer="adamw",
    learning_rate=2e-3,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    warmup=0.1,
    final_learning_rate=1e-5,
    label_smoothing=0.1,
    clip_norm=1.0,
    shift=0.08,
)

TUNE = QUICK.model_copy(update={"name": "tune", "epochs": 4, "learning_rate": 1e-3})
"""For weights trained at a smaller size: fewer epochs and a lower learning rate than `quick`."""

ATLAS = Recipe(
    name="atlas",
    epochs=320,
    batch_size=2048,
    optimizer="adamw",
    learning_rate=5e-4,
    betas=(0.9, 0.999),
    weight_decay=0.24,
    warmup=30 / 320,
    final_learning_rate=1e-6,
    label_smoothing=0.1,
    drop_path=0.3,
    precision="bf16",
    sync_batch_norm=True,
    crop_scale=(0.08, 1.0),
    flip=0.5,
    auto_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
)
"""The recipe of the Atlas paper, from its text and its configuration files (arXiv:2503.12355)."""

RECIPES = {recipe.name: recipe for recipe in (QUICK, TUNE, ATLAS)}


def read_recipe(spec: str, **changes: Any) -> Recipe:
    """A shipped recipe by name, or one from a TOML file.

    Arguments:
        spec: "quick", "tune", "atlas", or a path to a .toml file with at least the fields without defaults.
        changes: fields to replace; None keeps a field.

    Raises:
        UnknownName: there is no recipe of that name.
        LongvisError: the file cannot be read, or is not a recipe.
    """
    if spec.endswith(".toml"):
        fields = _read_fields(Path(spec))
    elif spec in RECIPES:
        fields = RECIPES[spec].model_dump()
    else:
        raise UnknownName("recipe", spec, RECIPES, f"known: {', '.join(RECIPES)}, or a path to a .toml file.")
    fields |= {key: value for key, value in changes.items() if value is not None}
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise LongvisError(f"the recipe {spec} is not valid: {field}: {fault['msg'].lower()}.") from error


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        return {"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8-sig"))}
    except OSError as error:
        raise LongvisError(f"cannot read the recipe {path}: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LongvisError(f"the recipe {path} is not valid TOML: {error}.") from error
