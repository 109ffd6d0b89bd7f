"""Checks of cells that fail: each costs one row, and takes nothing from the next cell."""

from __future__ import annotations

import torch

from gpu_checks.check import Context, Figures, check, ended

LEFT_LIMIT = 200 << 20
"""Bytes of device memory that may be missing after models that failed."""
HOSTILE = {
    "oom": ("torch.empty(1 << 46, dtype=torch.uint8, device=x.device)", ("oom",)),
    "assert": (
        "torch.zeros(4, device=x.device)[torch.tensor([9], device=x.device)].tolist()",
        ("error", "crashed"),
    ),
    "hang": ("x.is_cuda and torch.cuda._sleep(10**13)", ("timeout",)),
}
"""Models that fail: a line of their forward, and the statuses that may come of it."""
MODEL = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        {line}
        return self.head(x.mean((2, 3)))


def build(*, resolution, num_classes, in_chans=3):
    return Net(num_classes)
"""


def _hostile(context: Context, name: str) -> tuple[bool, Figures]:
    """A model's end, that of the cell after it, and the device memory that is missing then."""
    line, wanted = HOSTILE[name]
    file = context.folder / f"hostile_{name}.py"
    file.write_text(MODEL.format(line=line))
    before = torch.cuda.mem_get_info(context.device)[0]
    options = ("--res", "64", "--metrics", "time", "--timeout", "25", "--budget", "0.3")
    first, second = context.bench(name, "--models", f"{file}:build,vit-n", *options)
    left = before - torch.cuda.mem_get_info(context.device)[0]
    figures = {"ended": ended([first, second]), "left_bytes": left}
    return first.status in wanted and second.status == "ok" and left < LEFT_LIMIT, figures


@check(25)
def out_of_memory(context: Context) -> tuple[bool, Figures]:
    """A cell that asks for 64 TiB is `oom`, the next one ok, and no device memory stays taken."""
    return _hostile(context, "oom")


@check(25)
def device_assertion(context: Context) -> tuple[bool, Figures]:
    """A device-side assertion costs one row, the next cell is ok, and no device memory stays taken."""
    return _hostile(context, "assert")


@check(60)
def hung_kernel(context: Context) -> tuple[bool, Figures]:
    """A kernel that does not end is `timeout`, the next cell ok, and no device memory stays taken."""
    return _hostile(context, "hang")
