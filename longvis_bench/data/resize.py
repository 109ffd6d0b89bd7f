"""Resize images of any size and normalise them, on the CPU or the device.

Bicubic with antialiasing, the kernel of Pillow and torchvision (Catmull-Rom, a = -0.5).  Antialiasing widens
the kernel when shrinking and has no effect when enlarging.  On the CPU 8-bit images stay 8-bit, which is
fastest, as in Pillow; elsewhere they are float.  The two differ by rounding, at most 1.5 of 255, and where a
kernel overshoots black or white, because 8-bit kernels clamp after each of their two passes (tested).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def fit(image: Tensor, resolution: int) -> Tensor:
    """Resize the shorter side to the resolution, then crop the centre without a margin.

    Arguments:
        image: (channels, height, width), uint8 in 0-255 or float in 0-1.
        resolution: pixels per side.

    Returns:
        (channels, resolution, resolution), on the image's device, in its dtype.
    """
    image = _without_ends(image, resolution)
    height, width = image.shape[-2:]
    short = min(height, width)
    size = (int(resolution * height / short), int(resolution * width / short))
    if size != (height, width):
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    image = image[:, top : top + resolution, left : left + resolution]
    return image.clamp(0, 1) if image.is_floating_point() else image


def _without_ends(image: Tensor, resolution: int) -> Tensor:
    """A long image without most of what the crop would remove after enlarging it.

    4000 x 20 px enlarged to 1024 px are 204800 px wide, of which 1024 stay.  On either side of what stays,
    more is kept than the kernel reaches (2 px).  The cuts are symmetrical, so the centre stays where it is.
    """
    height, width = image.shape[-2:]
    short, long = min(height, width), max(height, width)
    kept = 4 * short + 4
    if short >= resolution or long <= kept:
        return image
    cut = (long - kept) // 2
    return image[..., cut : long - cut] if width == long else image[:, cut : long - cut]


def finish(
    images: Sequence[Tensor] | Tensor,
    resolution: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Make a batch of loaded images: copy to the device, resize there, scale to 0-1, normalise.

    Arguments:
        images: each (1 or 3, height, width), uint8 or float32 in 0-1; or one tensor of all.
        resolution: pixels per side.
        mean: per channel, of pixels in 0-1.
        deviation: standard deviation per channel.
        device: of the batch.
        dtype: of the result; float32 unless given.

    Returns:
        (batch, 3, resolution, resolution).
    """
    device = torch.device(device)
    batch = torch.empty(len(images), 3, resolution, resolution, device=device)
    for row, image in zip(batch, images, strict=True):
        row.copy_(_unit(fit(_sent(image, device), resolution)))
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
