"""Modules that overwrite their input give what torch's own give, and overwrite nothing a gradient needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.ops.inplace_layers import GELU, BatchNorm2d

MODULES: list[tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = [
    (GELU, nn.GELU),
    (lambda: GELU(approximate="tanh"), lambda: nn.GELU(approximate="tanh")),
    (lambda: BatchNorm2d(6, eps=1e-4), lambda: nn.BatchNorm2d(6, eps=1e-4)),
]


def pair(number: int) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's with the same weights and statistics, none of them trivial."""
    ours, theirs = (make() for make in MODULES[number])
    state = {name: torch.rand(t.shape) + 0.5 for name, t in theirs.state_dict().items()}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    return ours, theirs


def layouts() -> list[Tensor]:
    """Maps of one shape, contiguous, channels-last, and a slice that is neither."""
    x = torch.randn(2, 6, 5, 7)
    return [
        x,
        x.contiguous(memory_format=torch.channels_last),
        torch.randn(2, 8, 9, 6).permute(0, 3, 1, 2)[:, :, 1:6, 1:8],
    ]


@pytest.mark.parametrize("number", range(len(MODULES)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_without_gradients_equal_and_in_place(number: int, dtype: torch.dtype) -> None:
    ours, theirs = (module.eval().to(dtype) for module in pair(number))
    for x in layouts():
        x = x.to(dtype)
        with torch.inference_mode():
            expected = theirs(x)
            found = ours(x)
        torch.testing.assert_close(found, expected)
        assert found.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("number", range(len(MODULES)))
@pytest.mark.parametrize("train", [False, True])
def test_with_gradients_the_input_stays(number: int, train: bool) -> None:
    ours, theirs = (module.train(train).double() for module in pair(number))
    for x in layouts():
        before = x.double()
        given, same = (before.clone().requires_grad_() for _ in range(2))
        found, expected = ours(given), theirs(same)
        torch.testing.assert_close(found, expected)
        assert torch.equal(given, before)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(given.grad, same.grad)


def test_statistics_are_learnt_without_gradients_too() -> None:
    ours, theirs = pair(2)
    x = torch.randn(4, 6, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("number", range(len(MODULES)))
def test_compiles_without_graph_breaks_and_runs_by_shape(number: int) -> None:
    ours, theirs = (module.eval() for module in pair(number))
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x.clone()), theirs(x))
        assert ours.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("number", range(len(MODULES)))
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_autocast_gives_what_torchs_own_give(number: int, context: Callable[[], Any]) -> None:
    ours, theirs = (module.eval() for module in pair(number))
    for x in layouts():
        with context(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(ours(x.bfloat16()), theirs(x.bfloat16()))
            torch.testing.assert_close(ours(x.clone()), theirs(x))


def test_half_precision_input_of_a_float32_batch_norm() -> None:
    ours, theirs = (module.eval() for module in pair(2))
    x = torch.randn(2, 6, 5, 7, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected)


def test_batch_norms_without_statistics_or_weights() -> None:
    x = torch.randn(3, 6, 5, 5)
    for options in ({"track_running_stats": False}, {"affine": False}):
        ours, theirs = (kind(6, **options).eval() for kind in (BatchNorm2d, nn.BatchNorm2d))
        with torch.no_grad():
            expected = theirs(x)
            torch.testing.assert_close(ours(x.clone()), expected)


@pytest.mark.parametrize("number", range(len(MODULES)))
def test_traced_and_exported_graphs_overwrite_nothing(number: int) -> None:
    ours, theirs = (module.eval() for module in pair(number))
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        expected, before = theirs(x), x.clone()
        exported = torch.export.export(ours, (x,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and still used
            traced: Any = torch.jit.trace(ours, (x,))  # type: ignore[no-untyped-call]
        for found in (exported.module()(x), traced(x)):
            torch.testing.assert_close(found, expected)
            assert torch.equal(x, before)
    assert not [
        node.name for node in exported.graph.nodes if str(node.target).endswith(("_.default", ".out"))
    ]
