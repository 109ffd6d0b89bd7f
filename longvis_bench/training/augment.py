"""Augmentation of training images: timm's transforms per image, timm's mixup and erasing per batch.

Random numbers for one image come from its own seed, so that they do not depend on the batch, the process or
the device; those for a batch come from the global random states, which the training loop seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from longvis_bench.errors import LongvisError
from longvis_bench.resolution import Resolution, sides
from longvis_bench.training.recipe import Recipe

Seed = tuple[int, ...]
"""Seed of one image in one epoch, for NumPy's generators."""


class PictureAugment:
    """Random crop, flip and policy of a recipe for one RGB image; picklable, for the loader's workers.

    Arguments:
        recipe: selects the transforms.
        resolution: of the result.

    Raises:
        LongvisError: timm has no such policy.
    """

    def __init__(self, recipe: Recipe, resolution: Resolution) -> None:
        self._recipe, self._resolution = recipe, resolution
        self._steps = self._make()

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Augment one image, drawing from the global random states."""
        for step in self._steps:
            picture = step(picture)
        return picture

    def _make(self) -> tuple[Callable[[Any], Any], ...]:
        from timm.data.transforms_factory import create_transform

        recipe = self._recipe
        height, width = sides(self._resolution)
        shape = width / height  # of a crop, too
        narrowest, widest = (3 / 4, 4 / 3) if recipe.crop_scale else (1.0, 1.0)
        try:
            crop_and_flip, policy, _ = create_transform(
                (height, width),
                is_training=True,
                separate=True,
                scale=recipe.crop_scale or (1.0, 1.0),
                ratio=(shape * narrowest, shape * widest),
                hflip=recipe.flip,
                color_jitter=None,  # type: ignore[arg-type]
                auto_augment=recipe.auto_augment,
                interpolation="bicubic",
            )
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            raise LongvisError(
                f"timm has no augmentation {recipe.auto_augment!r}; an example is rand-m9-mstd0.5-inc1."
            ) from error
        for operation in _operations(policy):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
        return crop_and_flip, policy


def posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits of each channel; without any the image is black.

    timm's policies also ask for 0 bits, which Pillow 13 refuses.

    Arguments:
        picture: 8 bits per channel.
        bits: 0 to 8.
    """
    if bits <= 0:
        return Image.new(picture.mode, picture.size)
    return ImageOps.posterize(picture, min(bits, 8))


def _operations(policy: Any) -> Iterator[Any]:
    """All operations of timm's RandAugment, AutoAugment and AugMix, which may stand in a composition."""
    for part in getattr(policy, "transforms", [policy]):
        yield from getattr(part, "ops", ())
        for group in getattr(part, "policy", ()):
            yield from group


def picture_augment(recipe: Recipe, resolution: Resolution) -> PictureAugment | None:
    """The transform that the loader applies to each image; None if the recipe has no crop, flip or policy."""
    wanted = recipe.crop_scale is not None or recipe.flip > 0 or recipe.auto_augment is not None
    return PictureAugment(recipe, resolution) if wanted else None


class BatchAugment:
    """Shifts, mixup or cutmix, and erasing of normalised batches on their device; targets become soft.

    Arguments:
        recipe: selects the augmentations.
        num_classes: width of the targets.
        device: of the batches.
    """

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self._recipe, self._num_classes = recipe, num_classes
        self._mix = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            switch_prob=recipe.mixup_switch,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )
        self._erase = RandomErasing(  # type: ignore[no-untyped-call]
            probability=recipe.random_erasing, mode="pixel", device=device.type
        )

    def __call__(self, images: Tensor, labels: Tensor, seeds: Sequence[Seed]) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Arguments:
            images: (batch, 3, height, width), normalised; may be changed in place.
            labels: (batch), int64.
            seeds: one per image.

        Returns:
            Images of the same shape, and targets (batch, classes) that sum to 1.
        """
        images = shifted(images, self._recipe.shift, seeds)
        if self._recipe.random_erasing > 0:
            images = self._erase(images)
        if self._recipe.mixes:
            mixed, targets = self._mix(images, labels)
            return mixed, targets
        return images, smooth(labels, self._num_classes, self._recipe.label_smoothing)


def smooth(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Targets (batch, num_classes) with label smoothing: `share` of each is distributed over all classes."""
    return F.one_hot(labels, num_classes).float() * (1 - share) + share / num_classes


def shifted(images: Tensor, share: float, seeds: Sequence[Seed]) -> Tensor:
    """Shift each image by whole pixels, up to `share` of the side along each axis, repeating its border.

    Arguments:
        images: (batch, channels, height, width).
        share: 0 to 0.5; shifts are uniform and independent per image and axis.
        seeds: one per image.
    """
    height, width = images.shape[-2:]
    down, right = int(share * height), int(share * width)
    if not down and not right:
        return images
    padded = F.pad(images, (right, right, down, down), mode="replicate")
    cut = []
    for image, seed in zip(padded, seeds, strict=True):
        top, left = np.random.default_rng(seed).integers(0, [2 * down + 1, 2 * right + 1]).tolist()
        cut.append(image[:, top : top + height, left : left + width])
    return torch.stack(cut)
