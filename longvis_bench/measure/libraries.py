"""What libraries keep from their first call on, started before memory is watched."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from longvis_bench.data.protocol import ImageData
from longvis_bench.measure.iteration import DTYPES
from longvis_bench.records import Cell

IMAGE_SIDE = 256
"""Pixels per side of the image that initialises the kernel libraries; every data set supports it."""
SIDE = 256
"""Rows and columns of the matrices; any size starts the libraries."""


def start_libraries(cell: Cell, data: ImageData) -> None:
    """Load the data, start threads and kernel libraries, so that none of it counts as the model's memory."""
    device = torch.device(cell.device)
    images, _ = data.batch("val", [0], IMAGE_SIDE, device=device)
    with torch.inference_mode():
        maps = F.conv2d(images, images.new_ones(8, 3, 3, 3))
        F.linear(maps, images.new_ones(8, maps.shape[-1]))
    if device.type == "cuda":
        start_blas(device, DTYPES[cell.dtype], backward=cell.mode == "train")


def start_blas(device: torch.device, dtype: torch.dtype, *, backward: bool) -> None:
    """Make cuBLAS and cuBLASLt take their workspaces.

    Both take tens of MiB from torch's allocator, one workspace for each thread and stream, at the first
    product without and with a bias.  The backward runs in a thread of autograd's own.

    Arguments:
        device: where they start.
        dtype: of the products.
        backward: start them in autograd's thread, too.
    """
    matrix = torch.ones(SIDE, SIDE, device=device, dtype=dtype, requires_grad=backward)
    with torch.set_grad_enabled(backward):
        out = F.linear(matrix @ matrix, matrix, matrix[0])
    if backward:
        torch.autograd.backward(out.sum())
