"""VMamba: which sizes and arguments are legal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import (
    SizePlan,
    is_number,
    require_fraction,
    require_least,
    require_whole,
    require_whole_numbers,
)

LEAST = 32
"""Pixels that leave the last stage one token."""
FORMS = ("v05_noz", "v05", "v0")


def plan(resolution: AnyResolution, **arguments: Any) -> SizePlan:
    """VMamba: any size from 32 px; where a stage's side is odd, its half is rounded up."""
    check_vmamba(**arguments)
    require_least(resolution, LEAST, "vmamba")
    return SizePlan(reach="scans of the whole map in four directions; nothing changes with the size")


def check_vmamba(
    *,
    dims: Sequence[int] | int,
    depths: Sequence[int],
    ssm_d_state: int = 1,
    ssm_ratio: float = 1.0,
    ssm_conv: int = 3,
    forward_type: str = "v05_noz",
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a VMamba."""
    require_whole_numbers("depths", depths, "(2, 2, 8, 2)")
    if isinstance(dims, int):
        require_whole(dims=dims)
    else:
        require_whole_numbers("dims", dims, "(96, 192, 384, 768)")
        if len(dims) != len(depths):
            raise IllegalArgument(f"dims and depths must be as many, not {len(dims)} and {len(depths)}.")
    require_whole(ssm_d_state=ssm_d_state, ssm_conv=ssm_conv)
    if ssm_conv % 2 == 0:
        raise IllegalArgument(f"ssm_conv must be odd, so that the map keeps its size, not {ssm_conv}.")
    for name, value, least in (("ssm_ratio", ssm_ratio, 1e-9), ("mlp_ratio", mlp_ratio, 0.0)):
        if not is_number(value) or value < least:
            raise IllegalArgument(f"{name} must be a positive number, not {value!r}.")
    if forward_type not in FORMS:
        raise IllegalArgument(f"forward_type must be one of {', '.join(FORMS)}, not {forward_type!r}.")
    require_fraction("drop_path_rate", drop_path_rate)
