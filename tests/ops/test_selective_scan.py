import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longvis_bench.errors import MissingDependency, UnknownName
from longvis_bench.ops import c_toolchain
from longvis_bench.ops.selective_scan import operator as scan
from longvis_bench.ops.selective_scan.operator import (
    ScanSize,
    backend_for,
    reference,
    selective_scan,
    use_backend,
    warm_up_scan,
)

Shape = tuple[int, ...]
SHAPES: list[Shape] = [
    (1, 1, 1, 1),
    (2, 3, 7, 4),
    (3, 16, 49, 8),
    (1, 5, 33, 16),
    (2, 12, 9, 1, 4),
    (1, 6, 7, 3, 2),
]
"""Batch, channels, length, states, and groups of B and C where there are some."""
CPU_BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(source.package) is None, reason=f"{source.package} is not installed"
        ),
    )
    for name, source in scan.SOURCES.items()
    if name == "torch" or "cpu" in source.devices
]


def random_inputs(
    batch: int,
    channels: int,
    length: int,
    states: int,
    *groups: int,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + channels * 100 + length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    A = -torch.rand(channels, states, generator=generator, dtype=torch.float64) * 8 - 0.1
    return [
        normal(batch, channels, length),
        normal(batch, channels, length),
        A.to(dtype).requires_grad_(),
        normal(batch, *groups, states, length),
        normal(batch, *groups, states, length),
        normal(channels),
        normal(channels),
    ]


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    out = function(*inputs)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def error(ours: Tensor, exact: Tensor) -> float:
    """Largest absolute error over the largest absolute exact value."""
    return ((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_the_reference(shape: Shape) -> None:
    inputs = random_inputs(*shape)
    expected = gradients(reference, inputs)
    actual = gradients(selective_scan, inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    "shape", [*SHAPES, (5, 16, 196, 8), (4, 32, 49, 8), (2, 70, 30, 8), (2, 140, 30, 3, 2)]
)
def test_float32_is_near_float64(shape: Shape, backend: str) -> None:
    exact = gradients(reference, random_inputs(*shape))
    with use_backend(backend):
        single = gradients(selective_scan, random_inputs(*shape, dtype=torch.float32))
    assert all(t.dtype == torch.float32 for t in single)
    assert error(single[0], exact[0]) <= 1e-6
    for ours, theirs in zip(single[1:], exact[1:], strict=True):
        assert error(ours, theirs) <= 5e-6


def test_a_group_is_a_scan_of_its_own() -> None:
    """Four directions as one batch of groups equal four scans, one after the other."""
    x, delta, A, B, C, D, bias = random_inputs(2, 12, 9, 3, 4)
    together = selective_scan(x, delta, A, B, C, D, bias)
    for g in range(4):
        own = slice(3 * g, 3 * g + 3)
        alone = selective_scan(x[:, own], delta[:, own], A[own], B[:, g], C[:, g], D[own], bias[own])
        torch.testing.assert_close(together[:, own], alone)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_takes_views(backend: str) -> None:
    """The model hands over transposed views, not contiguous tensors."""
    inputs = random_inputs(2, 3, 11, 4)
    views = [t.detach().mT.contiguous().mT if t.ndim == 3 else t.detach() for t in inputs]
    with use_backend(backend):
        out = selective_scan(*[t.float() for t in views])
    torch.testing.assert_close(out.double(), reference(*inputs).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_large_steps_and_small_steps_stay_finite(backend: str) -> None:
    inputs = random_inputs(1, 2, 16, 4, dtype=torch.float32)
    with torch.no_grad():
        inputs[1][:, 0] = 60.0
        inputs[1][:, 1] = -60.0
    with use_backend(backend):
        assert all(t.isfinite().all() for t in gradients(selective_scan, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    halves = [t.detach().to(dtype) for t in random_inputs(2, 3, 20, 4)]
    with use_backend(backend):
        out = selective_scan(*halves)
        wide = selective_scan(*[t.float() for t in halves])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wide, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 6, 5, 4, 2)], ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_operator_is_well_formed(backend: str, shape: Shape) -> None:
    inputs = [t.detach().float().requires_grad_() for t in random_inputs(*shape)]
    with use_backend(backend):
        torch.library.opcheck(
            torch.ops.longvis.selective_scan.default,
            tuple(inputs),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


def test_autocast_computes_in_float32() -> None:
    halves = [t.detach().bfloat16() for t in random_inputs(1, 2, 5, 4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert selective_scan(*halves).dtype == torch.float32


def test_runs_on_meta() -> None:
    inputs = [t.detach().to("meta").requires_grad_() for t in random_inputs(2, 3, 5, 4)]
    out = selective_scan(*inputs)
    assert out.shape == (2, 3, 5)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and t.grad.shape == t.shape for t in inputs)


def test_forced_backend_is_reported_and_given_back() -> None:
    before = backend_for("cpu")
    with use_backend("torch"):
        assert backend_for("cpu") == backend_for("cuda") == "torch"
    assert backend_for("cpu") == before


def test_float64_runs_torch() -> None:
    with use_backend(next(iter(scan.SOURCES))):
        assert backend_for("cpu", torch.float64) == "torch"


def test_device_without_a_backend_of_its_own_runs_torch() -> None:
    assert backend_for("mps") == "torch"


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(UnknownName, match="torch"), use_backend("fortran"):
        pass


def test_backend_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = scan.Source("longvis_bench.ops.scan_absent", "no_such_package", frozenset({"cpu"}))
    monkeypatch.setitem(scan.SOURCES, "absent", absent)
    assert backend_for("cpu") != "absent"
    with pytest.raises(MissingDependency, match="pip install no_such_package"), use_backend("absent"):
        pass


FORK = """
import os, torch
from longvis_bench.ops.selective_scan.operator import selective_scan, use_backend
torch.set_num_threads(2)
shapes = [(3, 64, 5), (3, 64, 5), (64, 4), (3, 4, 5), (3, 4, 5), (64,), (64,)]
inputs = [-torch.ones(shape) for shape in shapes]
with use_backend("numba"):
    first = selective_scan(*inputs)
    child = os.fork()
    again = selective_scan(*inputs)
    if child == 0:
        os._exit(0 if torch.equal(first, again) else 1)
    assert os.waitpid(child, 0)[1] == 0 and torch.equal(first, again)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_numba_survives_a_fork() -> None:
    pytest.importorskip("numba")
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=120)


@pytest.mark.slow
def test_numba_runs_where_nothing_can_be_written() -> None:
    """No directory for machine code: it is compiled anew and runs."""
    pytest.importorskip("numba")
    script = """
import numba.core.caching as caching, torch
caching.CacheImpl._locator_classes = []
from longvis_bench.ops.selective_scan.operator import selective_scan, use_backend
with use_backend("numba"):
    shapes = [(1, 2, 3), (1, 2, 3), (2, 4), (1, 4, 3), (1, 4, 3), (2,), (2,)]
    selective_scan(*[-torch.ones(shape) for shape in shapes])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_import_runs_no_numba() -> None:
    script = "import sys, longvis_bench.ops.selective_scan.operator; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


INTERPRETED = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("scan_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
for shape in [(1, 1, 1, 1), (2, 3, 7, 4), (2, 40, 33, 8), (1, 5, 16, 3), (2, 70, 18, 1, 2)]:
    exact = tests.gradients(tests.reference, tests.random_inputs(*shape))
    with tests.use_backend("triton"):
        ours = tests.gradients(tests.selective_scan, tests.random_inputs(*shape, dtype=torch.float32))
    for name, a, b in zip("y x delta A B C D bias".split(), ours, exact, strict=True):
        assert tests.error(a, b) <= 5e-6, (shape, name, tests.error(a, b))
print("equal")
"""


HALF = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("scan_tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
    for shape in [(1, 1, 1, 1), (2, 33, 17, 5), (1, 31, 16, 7), (3, 65, 2, 3)]:
        halves = tests.random_inputs(*shape, dtype=dtype)
        exact = tests.gradients(tests.reference, [t.detach().double().requires_grad_() for t in halves])
        with tests.use_backend("triton"):
            ours = tests.gradients(tests.selective_scan, halves)
        for name, a, b in zip("y x delta A B C D bias".split(), ours, exact, strict=True):
            assert a.dtype == dtype and a.shape == b.shape, (shape, name)
            assert tests.error(a, b) <= tolerance, (dtype, shape, name, tests.error(a, b))
print("near")
"""


LOOP = """
import torch, triton, triton.language as tl
@triton.jit
def kernel(out, n):
    for i in range(n):
        tl.store(out, 1.0 * i)
"""
LOOP_RUN = "import runpy, sys, torch; runpy.run_path(sys.argv[1])['kernel'][(1,)](torch.zeros(1), 3)"


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a script with Triton's interpreter, where it runs loops at all."""
    triton = pytest.importorskip("triton")
    loop = tmp_path_factory.mktemp("loop") / "loop.py"
    loop.write_text(LOOP)

    def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    probe = run(LOOP_RUN, loop)
    if "only 0-dimensional arrays can be converted" in probe.stderr:
        pytest.skip(f"the interpreter of triton {triton.__version__} runs no loops under this NumPy")

    def checked(script: str, *arguments: object) -> str:
        done = run(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return checked


def test_triton_in_its_interpreter(interpreted: Callable[..., str]) -> None:
    assert interpreted(INTERPRETED, __file__) == "equal"


@pytest.mark.slow
def test_triton_in_its_interpreter_at_odd_shapes_in_half_precision(interpreted: Callable[..., str]) -> None:
    """One lane more and one less than a program's, one step more than a span, states of no power of two."""
    assert interpreted(HALF, __file__) == "near"


FAR = """
import numpy as np, torch
from triton.runtime import interpreter
from longvis_bench.ops.selective_scan import triton_backend as scan_triton

reached = []

def load(self, pointers, mask, other, *rest):
    reached.extend(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())
    element = pointers.get_element_ty()
    return interpreter.TensorHandle(np.zeros(pointers.data.shape, np.float32), element)

def store(self, pointers, value, mask, *rest):
    load(self, pointers, mask, None)

interpreter.InterpreterBuilder.create_masked_load = load
interpreter.InterpreterBuilder.create_masked_store = store
length, channels, states = 4, 2**30, 3
sizes = [length, channels, states]

def furthest(kernel, at, arguments):
    # one program of lanes 0-31; all arrays are one small one, except where offsets are looked at
    tensors = [torch.zeros(1) for _ in arguments]
    kernel[(1, 1)](*tensors, *at)
    reach = [[p - t.data_ptr() for p in reached] for t in tensors]
    reached.clear()
    wanted = 4 * ((length - 1) * channels + 31)
    assert any(wanted in offsets for offsets in reach), kernel
    assert max(min(map(abs, each)) for each in zip(*reach, strict=True)) <= wanted, kernel

furthest(scan_triton.forward_kernel, [*sizes, 1, 32, 4], range(6))
furthest(scan_triton.backward_kernel, [*sizes, 1, 1, 32, 4, 16], range(13))
print("far")
"""


def test_triton_offsets_pass_two_to_the_31(interpreted: Callable[..., str]) -> None:
    """Memory is stood in for, so that only the pointers are looked at: 2^32 elements of one image."""
    assert interpreted(FAR) == "far"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (25, 160, 196, 8), (4, 70, 49, 8), (2, 32, 1000, 16), (2, 160, 196, 1, 4)]
)
def test_triton_on_a_gpu(shape: Shape) -> None:
    exact = gradients(reference, [t.detach().cuda().requires_grad_() for t in random_inputs(*shape)])
    single = [t.detach().cuda().requires_grad_() for t in random_inputs(*shape, dtype=torch.float32)]
    assert backend_for("cuda") == "triton"
    for ours, theirs in zip(gradients(selective_scan, single), exact, strict=True):
        assert error(ours, theirs) <= 1e-5


def test_without_a_compiler_the_scan_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles a launcher in C at its first kernel, against Python's headers."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mamba_ssm" else name)
    for what, backend in ((None, "triton"), ("there is no C compiler", "torch")):
        monkeypatch.setattr(c_toolchain, "missing", lambda what=what: what)
        scan.is_installed.cache_clear()
        try:
            assert backend_for("cuda") == backend
        finally:
            scan.is_installed.cache_clear()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 240, 241, 256, 257, 4096, 16129, 16384])
def test_the_warm_up_compiles_what_the_model_will_run(length: int) -> None:
    """Triton's kernels differ where a number is 1 or a multiple of 16: the length, and its spans of 16."""
    size = ScanSize(channels=80, length=length, states=8)
    short = size.shortest
    assert (short.channels, short.states) == (80, 8)
    assert short.length <= min(length, 256)
    for ours, theirs in ((short.length, length), (-(-short.length // 16), -(-length // 16))):
        assert (ours == 1, ours % 16 == 0) == (theirs == 1, theirs % 16 == 0)


class Scans(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the scans that run: name, channels, length, states, groups, dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[object, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket._qualified_op_name
        if name.startswith("longvis::"):
            x, rate, groups = args[-7], args[-5], args[-4].shape[1]
            self.seen.append((name.partition("::")[2], *x.shape[1:], rate.shape[1], groups, x.dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backward", [False, True])
def test_the_warm_up_has_the_models_states_dtype_and_passes(backward: bool) -> None:
    sizes = [ScanSize(6, 49, 8), ScanSize(6, 50, 8), ScanSize(4, 32, 16), ScanSize(4, 32, 1, groups=4)]
    with Scans() as scans:
        warm_up_scan("cpu", sizes, dtype=torch.bfloat16, backward=backward)
    forward = [(6, 17, 8, 1), (4, 32, 16, 1), (4, 32, 1, 4)]
    seen = [scan for scan in scans.seen if scan[0] == "selective_scan"]
    assert seen == [("selective_scan", *size, torch.bfloat16) for size in forward]
    assert any("backward" in str(seen[0]) for seen in scans.seen) is backward


MAMBA_CALLS: list[dict[str, object]] = []


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options: object
) -> Tensor:
    """mamba-ssm's interface, over the reference."""
    MAMBA_CALLS.append(options)
    bias = options["delta_bias"]
    assert isinstance(bias, Tensor)
    return reference(u, delta, A, B, C, D, bias)


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name whose kernel runs anywhere."""
    module = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(selective_scan_fn=selective_scan_fn))
    monkeypatch.setattr(scan, "is_installed", lambda package: True)


def test_mamba_ssm_is_the_default_on_cuda_where_installed(mamba_ssm: None) -> None:
    assert backend_for("cuda", torch.bfloat16) == "mamba-ssm"
    assert backend_for("cuda", torch.float64) == "torch"
    assert backend_for("cpu") == "numba"


@pytest.mark.parametrize("shape", SHAPES)
def test_mamba_ssm_equals_the_reference(mamba_ssm: None, shape: Shape) -> None:
    exact = gradients(reference, random_inputs(*shape))
    with use_backend("mamba-ssm"):
        ours = gradients(selective_scan, random_inputs(*shape, dtype=torch.float32))
    for a, b in zip(ours, exact, strict=True):
        assert error(a, b) <= 1e-5
    assert MAMBA_CALLS[-1]["delta_softplus"] is True
    assert MAMBA_CALLS[-1]["z"] is None


def test_mamba_ssm_has_the_layout_that_compilers_were_told(mamba_ssm: None) -> None:
    with use_backend("mamba-ssm"):
        torch.library.opcheck(
            torch.ops.longvis.selective_scan.default,
            tuple(t.detach().float().requires_grad_() for t in random_inputs(2, 3, 5, 4)),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


def test_mamba_ssm_built_for_another_machine_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise ImportError('libcudart.so.12')")
    monkeypatch.syspath_prepend(tmp_path)
    scan.is_installed.cache_clear()
    try:
        assert backend_for("cuda") in ("triton", "torch")
        with pytest.raises(MissingDependency, match="pip install mamba-ssm"), use_backend("mamba-ssm"):
            pass
    finally:
        scan.is_installed.cache_clear()


def test_torchs_own_counter_sees_the_scan() -> None:
    inputs = [t.detach().to("meta") for t in random_inputs(2, 3, 5, 4)]
    with FlopCounterMode(display=False) as counter:
        selective_scan(*inputs)
    assert counter.get_total_flops() == 9 * 2 * 3 * 5 * 4


def test_compiles_without_graph_breaks_forward_and_backward() -> None:
    inputs = [t.detach().float().requires_grad_() for t in random_inputs(2, 3, 5, 4)]
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(gradients(compiled, inputs), gradients(selective_scan, inputs), strict=True):
        torch.testing.assert_close(ours, plain)
