"""From pixels of any size to a normalised batch, on the CPU or the device.

Bicubic with antialiasing, the kernel of Pillow and torchvision (Catmull-Rom, a = -0.5): enlarging, the
antialiasing does nothing; shrinking, it widens the kernel.  On the CPU 8-bit images stay 8-bit, which is
fastest, as in Pillow; elsewhere they are float.  The two differ by rounding, at most 1.5 of 255, and where a
kernel overshoots black or white, because 8-bit kernels cut that off after each of their two passes (tested).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def fit(image: Tensor, resolution: int) -> Tensor:
    """The shorter side brought to the resolution, then the centre cut out without margin.

    Arguments:
        image: (channels, height, width), uint8 in 0-255 or float in 0-1.
        resolution: pixels per side.

    Returns:
        (channels, resolution, resolution), on the image's device, in its dtype.
    """
    height, width = image.shape[-2:]
    short = min(height, width)
    size = (int(resolution * height / short), int(resolution * width / short))
    if size != (height, width):
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    image = image[:, top : top + resolution, left : left + resolution]
    return image.clamp(0, 1) if image.is_floating_point() else image


def finish(
    images: Sequence[Tensor] | Tensor,
    resolution: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Loaded images as a batch: sent to the device, fitted there, scaled to 0-1, normalised.

    Arguments:
        images: each (1 or 3, height, width), uint8 or float32 in 0-1; or all of them in one tensor.
        resolution: pixels per side.
        mean: by channel, of pixels in 0-1.
        deviation: by channel.
        device: where the batch is made.
        dtype: of the result; float32 unless given.

    Returns:
        (batch, 3, resolution, resolution).
    """
    device = torch.device(device)
    batch = torch.empty(len(images), 3, resolution, resolution, device=device)
    for place, image in zip(batch, images, strict=True):
        place.copy_(_unit(fit(_sent(image, device), resolution)))
    centre = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(deviation, device=device).view(1, -1, 1, 1)
    return batch.sub_(centre).div_(scale).to(dtype or torch.float32)


def _sent(image: Tensor, device: torch.device) -> Tensor:
    """The image on the device; there the 8-bit kernels do not exist."""
    sent = image.to(device, non_blocking=True)
    return sent if device.type == "cpu" else _unit(sent)


def _unit(image: Tensor) -> Tensor:
    """8-bit values as float32 in 0-1; floats as they are."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image
