"""What a sweep was asked for: `SweepConfig`, its defaults on this machine and its name.

Imports no torch, so that bad input answers at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from longvis_bench.data.protocol import FOLDER, open_data
from longvis_bench.environment import resolve_device, usable_cores
from longvis_bench.hashing import digest
from longvis_bench.records import (
    METRICS,
    ClassOrder,
    DataSpec,
    Dtype,
    MemoryFormat,
    Metric,
    Mode,
    TrainLength,
)
from longvis_bench.registry.registry import Registry

_NOT_IN_THE_NAME = {"budget_s", "precision", "timeout_s", "memory_limit_bytes", "skip_after_oom", "hours_for"}
"""Changing these continues the same run."""


QUICK_RESOLUTIONS = {"cpu": (256, 512, 1024), "cuda": (1024, 2048, 4096)}


QUICK_BUDGET_S = 5.0


CPU_IMAGES = 128


Positive = Annotated[int, Field(ge=1, lt=2**31)]


def _train_length(value: object) -> object:
    return TrainLength.parse(value) if isinstance(value, str) else value


class SweepConfig(BaseModel):
    """What `longvis bench` was asked; also the form of `--config` files and of `config` in run.json.

    None means "the default for this machine", which `resolve` fills in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = ()
    """Names as `registry.Registry.find` takes them; empty for the quick default."""
    resolutions: tuple[Positive, ...] = ()
    modes: tuple[Mode, ...] = ("infer",)
    batch_sizes: tuple[Positive | Literal["auto"], ...] = (1,)
    """`auto`: the batch of best throughput; see `batch_search.py`."""
    dtypes: tuple[Dtype, ...] = ()
    device: str = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory_format: MemoryFormat = "channels_last"
    fuse: bool = False
    """Fold batch norms into the convolutions before them, in inference."""
    grad_checkpointing: bool = False
    """In training, keep blocks' inputs only and compute the rest again in the backward."""
    compile: bool = False
    """Run through torch.compile; its time is no part of the budget."""
    repeats: int = Field(1, ge=1, le=1000)
    """Passes over all cells, each cell in a fresh process every time."""
    metrics: tuple[Metric, ...] = METRICS
    data: str = "digits"
    classes: str | None = None
    """For `folder:PATH`: a shipped list of classes, or a file, whose order is that of the logits."""
    class_order: ClassOrder = "sorted"
    """For `folder:PATH` without `classes`: how its folders are numbered."""
    window: tuple[float, float] | None = None
    """For `folder:PATH`: the pixel values that become 0 and 1, for images of more than 8 bits."""
    images: Positive | None = None
    weights: Path | None = None
    pretrained: bool = False
    """timm's own weights: `weights`, or what the local cache holds."""
    budget_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    precision: float = Field(0.02, gt=0, lt=1)
    timeout_s: float = Field(600.0, gt=0, allow_inf_nan=False)
    memory_limit_bytes: int | None = Field(None, ge=1, lt=2**63)
    hours_for: Annotated[TrainLength | None, BeforeValidator(_train_length)] = None
    """What `train_hours` is worked out for."""
    seed: int = Field(0, ge=0, lt=2**63)
    models_dirs: tuple[Path, ...] = ()
    skip_after_oom: bool = True

    @property
    def source(self) -> DataSpec:
        """The data, as `open_data` finds it."""
        if not self.data.startswith(FOLDER):
            return DataSpec(self.data, self.classes, self.window, class_order=self.class_order)
        path = Path(self.data.removeprefix(FOLDER)).expanduser().absolute()
        return DataSpec(f"{FOLDER}{path}", self.classes, self.window, class_order=self.class_order)

    @property
    def is_quick(self) -> bool:
        """Whether the quick default is asked for."""
        return not self.models

    def resolve(self, registry: Registry) -> SweepConfig:
        """The same with every default of this machine filled in.

        Raises:
            DeviceError: the device is not there.
        """
        device = resolve_device(self.device)
        kind = "cuda" if device.startswith("cuda") else "cpu"
        quick = QUICK_BUDGET_S if self.is_quick and kind == "cpu" else 30.0
        return self.model_copy(
            update={
                "device": device,
                "models": self.models or _quick_models(registry, kind),
                "resolutions": self.resolutions or QUICK_RESOLUTIONS[kind],
                "dtypes": self.dtypes or (("fp32",) if kind == "cpu" else ("bf16",)),
                "threads": self.threads or usable_cores(),
                "images": self.images or self._usual_images(kind),
                "budget_s": self.budget_s or quick,
            }
        )

    @property
    def is_evaluation(self) -> bool:
        """Whether accuracy is all that is asked for."""
        return self.metrics == ("accuracy",)

    def _usual_images(self, kind: str) -> int:
        """All held-out images; some of them where accuracy is one of many numbers on a CPU."""
        if kind == "cpu" and not self.is_evaluation:
            return CPU_IMAGES
        return open_data(self.source).size("val")

    @property
    def name(self) -> str:
        """Name of the run's directory: readable, and the same for the same resolved configuration."""
        models = "-".join(re.sub(r"[^a-z0-9]+", "-", Path(model).name.lower()) for model in self.models)
        short = models if len(models) <= 48 else f"{len(self.models)}-models"
        sizes = "-".join(map(str, self.resolutions))
        numbers = self.model_dump(mode="json", exclude=_NOT_IN_THE_NAME)
        return f"{short}-{sizes}-{digest(numbers)[:8]}"


def _quick_models(registry: Registry, kind: str) -> tuple[str, ...]:
    cards = (found.card for found in registry.cards if found.origin == "built-in")
    chosen = (card.nano if kind == "cpu" else card.default_cuda for card in cards)
    return tuple(name for name in chosen if name is not None)
