"""Agent-Swin: which sizes and arguments are legal, and the windows of a size."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from longvis_bench.errors import IllegalArgument
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.plan import SizePlan, require_whole_numbers
from longvis_bench.sizes.windowed import STAGES, check_windowed, described, windows_of


def plan(
    resolution: AnyResolution,
    *,
    attn_type: str = "AAAB",
    window_size: int | Sequence[int] | None = None,
    agent_num: Sequence[int] = (9, 16, 49, 49),
    **others: Any,
) -> SizePlan:
    """Agent-Swin: multiples of 32; stages with agents are one window, others have windows of 7 or 8."""
    check_agent(attn_type=attn_type, window_size=window_size, agent_num=agent_num, **others)
    windows = windows_of(resolution, "agent", attn_type, window_size, "A")
    agents = ", ".join(str(n) for n, kind in zip(agent_num, attn_type, strict=True) if kind == "A")
    return SizePlan(
        reach=f"{described(resolution, windows)}; {agents or 'no'} agents per window and head",
        arguments={"window_size": windows},
    )


def check_agent(
    *, attn_type: str = "AAAB", agent_num: Sequence[int] = (9, 16, 49, 49), **others: Any
) -> None:
    """Raise IllegalArgument unless these make an AgentSwin."""
    check_windowed(attn_type=attn_type, letters="AB", **others)
    require_whole_numbers("agent_num", agent_num, "(9, 16, 49, 49)")
    if len(agent_num) != STAGES or any(isqrt(n) ** 2 != n for n in agent_num):
        raise IllegalArgument(f"agent_num must be {STAGES} square numbers, not {list(agent_num)}.")
