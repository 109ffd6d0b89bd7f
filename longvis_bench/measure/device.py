"""The device of a cell: which one it is, among several of its kind."""

from __future__ import annotations

import torch

from longvis_bench.measure.latency.clock import use_device
from longvis_bench.measure.memory.outside import used_by_gpu
from longvis_bench.measure.row_builder import RowBuilder
from longvis_bench.records import Request


def take_device(request: Request, builder: RowBuilder) -> None:
    """Make the cell's device the current one, which libraries use; the row names the GPU that it is.

    A cell's own device has no index: from here on `cuda` is this one.
    """
    device = torch.device(request.device or request.cell.device)
    is_cuda = device.type == "cuda"
    builder.gpu_used_bytes = used_by_gpu() if is_cuda else {}
    use_device(device)
    if is_cuda:
        builder.gpu_index = torch.cuda.current_device()
        builder.gpu_uuid = str(torch.cuda.get_device_properties(device).uuid)
