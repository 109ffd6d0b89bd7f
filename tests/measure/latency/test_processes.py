"""A cell over several processes: coverage of its interval, whether another is worth while, the verdict."""

from __future__ import annotations

import math
import random

import pytest

from longvis_bench import stats
from longvis_bench.measure.latency import processes as p
from longvis_bench.records import Cell, NoiseRecord, ProcessRecord, Row, Settings, TimingRecord
from longvis_bench.report.columns import BY_NAME

BUDGET = 5.0
PRECISION = 0.02
TRUTH = 0.1


def row(*medians: float, disturbed: int = 0, seconds: float = 1.0, samples: int = 8) -> Row:
    """A row with one process per median; the last `disturbed` of them were disturbed."""
    taken = tuple(value for median in medians for value in [median] * samples)
    clean = len(medians) - disturbed
    made = tuple(
        ProcessRecord(samples=samples, seconds=seconds, disturbed=None if i < clean else "load")
        for i in range(len(medians))
    )
    timing = TimingRecord(samples_s=taken, warmup_s=(), verdict="stable", processes=made)
    cell = Cell(model="m", family="f", variant="m", implementation="user", resolution=64)
    return Row(key="k", cell=cell, settings=Settings(precision=PRECISION), status="ok", timing=timing)


def wants(found: Row, fewest: int = 3) -> bool:
    return p.wants_another(found, fewest=fewest, budget_s=BUDGET, precision=PRECISION)


def test_every_cell_gets_three_processes_and_more_until_they_agree() -> None:
    assert wants(row(1.0))
    assert wants(row(1.0, 1.0))
    assert not wants(row(1.0, 1.0, 1.0))
    assert wants(row(1.0, 1.2, 1.0))
    assert not wants(row(1.0, 1.2, 1.0, seconds=2.0)), "the budget is spent"
    assert not wants(row(*[1.0, 1.3] * 6, seconds=0.1)), "a dozen processes is enough"


def test_a_first_look_and_an_iteration_longer_than_the_budget_get_one() -> None:
    assert not wants(row(1.0), fewest=1)
    assert not wants(row(2.6))
    assert wants(row(2.4))


def test_a_disturbed_process_is_measured_again_within_bounds() -> None:
    assert wants(row(1.0, 1.0, 1.0, disturbed=1))
    assert not wants(row(1.0, 1.0, 1.0, 1.0, disturbed=1))
    assert not wants(row(1.0, 1.0, 1.0, disturbed=3, seconds=4.0))


def test_disturbed_processes_do_not_count_unless_all_are() -> None:
    timing = row(1.0, 1.01, 0.99, 5.0, disturbed=1).timing
    assert timing is not None
    assert stats.across_processes(timing.by_process(clean=True)) == 1.0
    assert len(timing.by_process()) == 4
    spoilt = row(1.0, 5.0, disturbed=2).timing
    assert spoilt is not None
    assert len(spoilt.by_process(clean=True)) == 2


@pytest.mark.parametrize(
    ("found", "fewest", "verdict"),
    [
        (row(1.0, 1.001, 1.0), 3, "stable"),
        (row(1.0, 1.1, 1.0), 3, "noisy"),
        (row(1.0, 1.0), 3, "noisy"),
        (row(1.0), 1, "single"),
        (row(1.0), 3, "single"),
        (row(1.0, 1.0, disturbed=1), 3, "disturbed"),
        (row(1.0, 1.001, 1.0), 1, "stable"),
        (row(1.0, 1.0, 1.0, disturbed=3), 3, "disturbed"),
        (row(1.0, disturbed=1), 1, "disturbed"),
    ],
)
def test_the_verdict_is_over_processes(found: Row, fewest: int, verdict: str) -> None:
    judged = p.judged(found, fewest=fewest, others=None)
    assert judged.timing is not None
    assert judged.timing.verdict == verdict


def test_too_few_processes_take_the_spread_of_the_other_cells() -> None:
    others = p.pooled_spread([row(1.0, 1.1, 1.2), row(3.0, 3.0, 3.0), row(1.0)])
    assert others is not None
    alone = p.judged(row(4.0), fewest=3, others=others)
    assert alone.timing is not None
    found = stats.latency_interval(alone.timing.by_process(clean=True), alone.timing.others_spread)
    assert found is not None
    assert found.low < 4.0 < found.high
    assert math.log(found.high / 4.0) == pytest.approx(1.96 * others, rel=1e-3)


@pytest.mark.parametrize("others", [None, 0.0, 0.002, 0.0101, 0.0103, 0.3])
@pytest.mark.parametrize("fewest", [1, 2, 3])
@pytest.mark.parametrize("precision", [0.001, 0.0199, 0.02, 0.1])
def test_the_verdict_is_that_of_the_interval_in_the_table(
    others: float | None, fewest: int, precision: float
) -> None:
    """No row is noisy within the precision, none is stable beyond it, and every doubt has a footnote."""
    rng = random.Random(17)
    for number in (1, 2, 3, 4, 12):
        for disturbed in range(number + 1):
            found = row(*(1 + rng.gauss(0, 0.01) for _ in range(number)), disturbed=disturbed)
            found = found.model_copy(update={"settings": Settings(precision=precision)})
            judged = p.judged(found, fewest=fewest, others=others)
            assert judged.timing is not None
            width = BY_NAME["latency_half_width"].value(judged)
            narrow = isinstance(width, float) and width <= precision
            verdict = judged.timing.verdict
            assert verdict in ("stable" if narrow else "noisy", "single", "disturbed")
            notes = {note.code: note.message for note in judged.notes}
            assert set(notes) - {"few_samples"} == {verdict} - {"stable"}
            own = len(judged.timing.by_process(clean=True)) >= 3
            assert ("few_samples" in notes) == (verdict == "stable" and not own)


def test_a_width_that_rounds_to_the_target_is_told_apart_from_it() -> None:
    judged = p.judged(row(1.0), fewest=3, others=0.0204 / 1.96)
    (note,) = judged.notes
    assert note.message == "the latency's 95 % interval over 1 process is ±2.04 %; the target is ±2.00 %"


def test_a_failed_process_is_kept_and_gives_no_sample() -> None:
    before, failed = row(1.0, 1.0), row(1.0).model_copy(update={"status": "crashed", "reason": "signal 9"})
    assert before.timing is not None
    after = p.with_process(before.timing, failed, 2.0)
    assert after.samples_s == before.timing.samples_s
    assert after.processes[-1].disturbed == "crashed: signal 9"
    assert len(after.by_process()) == 2


@pytest.mark.parametrize(
    ("noise", "named"),
    [
        (NoiseRecord(load_cores=1.0, own_cores=1.0), "other processes"),
        (NoiseRecord(steal=0.2), "hypervisor"),
        (NoiseRecord(load_cores=0.0, own_cores=0.5), "2 threads"),
        (NoiseRecord(load_cores=0.05, own_cores=1.1, steal=0.0), None),
        (NoiseRecord(), None),
    ],
)
def test_what_disturbs_a_process_is_named(noise: NoiseRecord, named: str | None) -> None:
    cell = Cell(model="m", family="f", variant="m", implementation="user", resolution=64, threads=2)
    found = p.disturbance(noise, cell)
    assert (found is None) if named is None else (found is not None and named in found)
    assert p.disturbance(noise, cell.model_copy(update={"device": "cuda:0"})) is None


def simulated(between: float, rng: random.Random) -> Row:
    """A whole cell by the rule: processes with a log-normal spread between them and 3 % noise within."""
    medians: list[float] = []
    taken: list[float] = []
    found = row(TRUTH)
    while not medians or wants(found):
        level = TRUTH * math.exp(rng.gauss(0, between))
        samples = [level * math.exp(rng.gauss(0, 0.03)) for _ in range(12)]
        medians.append(level)
        taken += samples
        made = tuple(ProcessRecord(samples=12, seconds=0.6) for _ in medians)
        timing = TimingRecord(samples_s=tuple(taken), warmup_s=(), verdict="stable", processes=made)
        found = found.model_copy(update={"timing": timing})
    return p.judged(found, fewest=3, others=None)


@pytest.mark.parametrize("between", [0.0, 0.05, 0.2, 0.5])
@pytest.mark.parametrize(
    ("trials", "slack"), [pytest.param(2000, 0.0, marks=pytest.mark.slow), pytest.param(300, 0.038)]
)
def test_the_interval_covers_the_true_median_over_processes(
    between: float, trials: int, slack: float
) -> None:
    """300 trials are judged three binomial standard errors looser than the 2,000 of `make deep`."""
    rng, covered, within = random.Random(20261128), 0, 0
    for _ in range(trials):
        timing = simulated(between, rng).timing
        assert timing is not None
        over = stats.latency_interval(timing.by_process(clean=True), timing.others_spread)
        one = stats.median_interval(timing.by_process()[0])
        assert over is not None
        assert one is not None
        covered += over.low <= TRUTH <= over.high
        within += one.low <= TRUTH <= one.high
    print(f"spread {between:.0%}: {covered / trials:.1%}; interval within one process: {within / trials:.1%}")
    assert 0.93 - slack <= covered / trials <= 0.97 + slack
    if between >= 0.2:
        assert within / trials < 0.5, "samples of one process tell nothing of the next"
