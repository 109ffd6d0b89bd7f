"""The scan's Triton kernels compile to machine code without a GPU, and keep their states in registers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
CAPABILITIES = (75, 80, 90, 100, 120)
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
"""The launch's, and Triton's default of today, said aloud because it warns that it will change."""
REGISTERS = {("forward", 8): 64, ("forward", 16): 96, ("backward", 8): 128, ("backward", 16): 255}
"""By kernel and states: the most registers per thread on any capability; more slow the scan down.

Triton 3.9 allots, by capability from 7.5 to 12.0:

    forward 8 states: 55, 55, 53, 52, 62
    forward 16 states: 86, 77, 72, 72, 80
    backward 8 states: 128, 128, 106, 106, 108
    backward 16 states: 168, 238, 232, 226, 244
"""


def compiled(kernel: Any, capability: int, **constants: int) -> Any:
    """Machine code of a kernel as `triton_backend` launches it: aligned float32 arrays, one group."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    integers = {"length", "channels", "states", "spans"}
    kinds = {
        name: "constexpr" if name in constants else "i32" if name in integers else "*fp32"
        for name in kernel.arg_names
    }
    aligned = [
        (at,) for at, name in enumerate(kernel.arg_names) if kinds[name] == "*fp32" or name == "channels"
    ]
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS)


def usage(code: bytes, folder: Path) -> dict[str, int]:
    """Registers and bytes of stack and local memory per thread; the last two hold what registers do not."""
    import triton

    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not dump.exists():
        pytest.skip("this triton comes without cuobjdump")
    file = folder / "kernel.cubin"
    file.write_bytes(code)
    told = subprocess.run([dump, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    assert found is not None, told
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


@pytest.mark.parametrize("states", [pytest.param(8, marks=pytest.mark.slow), 16])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_kernels_compile_without_spills(
    direction: str, states: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    from longvis_bench.ops.selective_scan import operator
    from longvis_bench.ops.selective_scan import triton_backend as backend

    constants = {"LANES": backend.LANES, "STATES": states, "groups": 1}
    if direction == "backward":
        constants["SPAN"] = operator.SPAN
    kernel = getattr(backend, f"{direction}_kernel")
    used = {
        capability: usage(compiled(kernel, capability, **constants).asm["cubin"], tmp_path)
        for capability in CAPABILITIES
    }
    spilled = {each: (used[each]["stack"], used[each]["local"]) for each in CAPABILITIES}
    assert spilled == dict.fromkeys(CAPABILITIES, (0, 0))
    most = max(each["registers"] for each in used.values())
    assert most <= REGISTERS[direction, states], used
