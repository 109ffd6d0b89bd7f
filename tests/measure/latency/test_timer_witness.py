"""A second, independent timer beside ours: torch's on the CPU, Triton's on CUDA.

The two take turns of equal length, so that a machine that becomes slower does so for both; compared is the
ratio within a round.  By default its median must lie within 10 %.  The long form demands that its 95 %
interval meets 0.97-1.03, and prints it: `pytest -m slow -s tests/test_timer_witness.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.benchmark import Timer

from longvis_bench import stats
from longvis_bench.measure.latency.clock import clock_for
from longvis_bench.measure.latency.timing import measure_latency

ROUNDS = [7, pytest.param(25, marks=pytest.mark.slow)]
TURN_S = 0.15
"""Seconds that either timer takes in a round."""
Seconds = Callable[[], float]


def small_model() -> nn.Module:
    """A few milliseconds on one core: long against a timer's own cost."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Conv2d(32, 64, 3, padding=1), nn.Flatten(2), nn.Linear(1024, 64)
    ).eval()


def iteration_on(device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model, images = small_model().to(device), torch.randn(4, 3, 128, 128, device=device)

    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def ours(run: Callable[[], object], device: str) -> Seconds:
    def seconds() -> float:
        record = measure_latency(run, clock_for(torch.device(device)), budget_s=TURN_S, precision=1e-6)
        found = stats.median(record.samples_s)
        assert found is not None
        return found

    return seconds


def ratios(mine: Seconds, other: Seconds, rounds: int) -> list[float]:
    """Ours / theirs in rounds; whose turn is first changes from one to the next."""
    found = []
    for turn in range(rounds):
        if turn % 2:
            theirs, own = other(), mine()
        else:
            own, theirs = mine(), other()
        found.append(own / theirs)
    return found


def agree(found: list[float], witness: str) -> bool:
    interval, middle = stats.median_interval(found), stats.median(found)
    assert interval is not None
    assert middle is not None
    print(
        f"\nours / {witness}: {middle:.4f}, 95 % interval {interval.low:.4f}-{interval.high:.4f}, "
        f"{len(found)} rounds"
    )
    if len(found) < 20:
        return 0.9 <= middle <= 1.1
    return interval.low <= 1.03 and interval.high >= 0.97


def attempts(rounds: int) -> range:
    """Another job on the machine can spoil a short run; a bias of ours would spoil each of three."""
    return range(3 if rounds < 20 else 1)


@pytest.mark.alone
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rounds", ROUNDS)
def test_against_torchs_timer(rounds: int) -> None:
    torch.set_num_threads(1)
    run = iteration_on("cpu")
    timer = Timer("run()", globals={"run": run}, num_threads=1)

    def theirs() -> float:
        return float(timer.blocked_autorange(min_run_time=TURN_S).median)

    assert any(agree(ratios(ours(run, "cpu"), theirs, rounds), "torch") for _ in attempts(rounds))


@pytest.mark.alone
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounds", ROUNDS)
def test_against_tritons_timer(rounds: int) -> None:
    from triton.testing import do_bench

    run = iteration_on("cuda")

    def theirs() -> float:
        return float(do_bench(run, return_mode="median")) / 1e3

    assert any(agree(ratios(ours(run, "cuda"), theirs, rounds), "triton") for _ in attempts(rounds))
