"""Resize images of any size and normalise them, on the CPU or the device.

Bicubic with antialiasing, the kernel of Pillow and torchvision (Catmull-Rom, a = -0.5).  Antialiasing widens
the kernel when shrinking and has no effect when enlarging.  On the CPU 8-bit images stay 8-bit, which is
fastest, as in Pillow; elsewhere they are float.  The two differ by rounding, at most 1.5 of 255, and where a
kernel overshoots black or white, because 8-bit kernels clamp after each of their two passes (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from longvis_bench.resolution import Fit, Resolution, sides


def fit(
    image: Tensor, resolution: Resolution, how: Fit = "crop", mean: Sequence[float] = (0.0,) * 3
) -> Tensor:
    """Bring an image to the resolution.

    Arguments:
        image: (channels, height, width), uint8 in 0-255 or float in 0-1.
        resolution: of the result.
        how: "crop": enlarge or shrink it until it covers the resolution, then crop the centre without a
            margin; "pad": until it is inside, then surround it with the mean; "stretch": each side by itself.
        mean: per channel, of pixels in 0-1; 8-bit images are padded with it rounded to 8 bits.

    Returns:
        (channels, height, width) of the resolution, on the image's device, in its dtype; padded images have
        three channels.
    """
    goal = sides(resolution)
    if how == "stretch":
        return _resized(image, goal)
    if how == "pad":
        return _padded(image, goal, mean)
    image = _without_ends(image, goal)
    size = _scaled(image, goal, max)
    image = _resized(image, size)
    top, left = (round((have - want) / 2) for have, want in zip(size, goal, strict=True))
    return image[:, top : top + goal[0], left : left + goal[1]]


Choose = Callable[[Fraction, Fraction], Fraction]


def _scale(image: Tensor, goal: tuple[int, int], choose: Choose) -> Fraction:
    """The scale at which the image covers the goal (`max`) or is inside it (`min`)."""
    height, width = image.shape[-2:]
    return choose(Fraction(goal[0], height), Fraction(goal[1], width))


def _scaled(image: Tensor, goal: tuple[int, int], choose: Choose) -> tuple[int, int]:
    """Height and width at that scale."""
    scale = _scale(image, goal, choose)
    height, width = (max(int(side * scale), 1) for side in image.shape[-2:])
    return height, width


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if size != tuple(image.shape[-2:]):
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    return image.clamp(0, 1) if image.is_floating_point() else image


def _padded(image: Tensor, goal: tuple[int, int], mean: Sequence[float]) -> Tensor:
    image = _resized(image, _scaled(image, goal, min))
    fill = torch.tensor(mean, device=image.device).view(3, 1, 1)
    fill = fill if image.is_floating_point() else fill.mul(255).round()
    canvas = fill.to(image.dtype).expand(3, *goal).clone()
    height, width = image.shape[-2:]
    top, left = (goal[0] - height) // 2, (goal[1] - width) // 2
    canvas[:, top : top + height, left : left + width] = image
    return canvas


def _without_ends(image: Tensor, goal: tuple[int, int]) -> Tensor:
    """A long image without most of what the crop would remove after enlarging it.

    4000 x 20 px enlarged to 1024 px are 204800 px wide, of which 1024 stay.  On either side of what stays,
    more is kept than the kernel reaches (2 px).  The cuts are symmetrical, so the centre stays where it is.
    """
    size = image.shape[-2:]
    scale = _scale(image, goal, max)
    if scale <= 1:
        return image
    kept = (4 * ceil(want / scale) + 4 for want in goal)
    top, left = (max((have - keep) // 2, 0) for have, keep in zip(size, kept, strict=True))
    return image[:, top : size[0] - top, left : size[1] - left]


def finish(
    images: Sequence[Tensor] | Tensor,
    resolution: Resolution,
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    how: Fit = "crop",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Make a batch of loaded images: copy to the device, resize there, scale to 0-1, normalise.

    Arguments:
        images: each (1 or 3, height, width), uint8 or float32 in 0-1; or one tensor of all.
        resolution: of the batch.
        mean: per channel, of pixels in 0-1.
        deviation: standard deviation per channel.
        how: see `fit`.
        device: of the batch.
        dtype: of the result; float32 unless given.

    Returns:
        (batch, 3, height, width).
    """
    device = torch.device(device)
    batch = torch.empty(len(images), 3, *sides(resolution), device=device)
    for row, image in zip(batch, images, strict=True):
        row.copy_(_unit(fit(_sent(image, device), resolution, how, mean)))
    centre = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(deviation, device=device).view(1, -1, 1, 1)
    return batch.sub_(centre).div_(scale).to(dtype or torch.float32)


def _sent(image: Tensor, device: torch.device) -> Tensor:
    """The image on the device, as float32 there, because 8-bit kernels exist on the CPU only."""
    sent = image.to(device, non_blocking=True)
    return sent if device.type == "cpu" else _unit(sent)


def _unit(image: Tensor) -> Tensor:
    """8-bit values as float32 in 0-1; floats unchanged."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image
