"""InLine-Swin: which sizes and arguments are legal, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import SizePlan
from longvis_bench.sizes.windowed import check_windowed, described, windows_of


def plan(
    resolution: AnyResolution,
    *,
    attn_type: str = "IIII",
    window_size: int | Sequence[int] | None = None,
    **others: Any,
) -> SizePlan:
    """InLine-Swin: multiples of 32; stages of it are one window, others have windows of 7 or 8."""
    check_inline(attn_type=attn_type, window_size=window_size, **others)
    windows = windows_of(resolution, "inline", attn_type, window_size, "I")
    return SizePlan(reach=described(resolution, windows), arguments={"window_size": windows})


def check_inline(*, attn_type: str = "IIII", **others: Any) -> None:
    """Raise IllegalArgument unless these make an InLineSwin."""
    check_windowed(attn_type=attn_type, letters="IS", **others)
