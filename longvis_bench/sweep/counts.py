"""Multiply-adds of models whose cards state none, counted before anything runs.

Estimates need them: the duration that `--dry-run` shows, the parts of `--shard`, and the order in which
several devices take cells.  Each model and size is counted once on the meta device, in a process of its
own, and the cell reads the count from the cache later.  A model that cannot be counted stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from longvis_bench.isolation.runner import Runner
from longvis_bench.records import Request
from longvis_bench.sweep.plan import Plan, Planned

COUNT_LIMIT_S = 120.0
"""Seconds after which a model counts as one that cannot be counted."""


def with_counts(plan: Plan, runner: Callable[[], AbstractContextManager[Runner]] = Runner) -> Plan:
    """The plan with the counted multiply-adds of the models whose cards state none.

    Arguments:
        plan: nothing is counted for cells whose duration does not depend on it.
        runner: runs the counts.
    """
    wanted = {
        (planned.request.model, planned.cell.resolution): _counting(planned.request)
        for planned in _unknown(plan)
    }
    if not wanted:
        return plan
    with runner() as counting:
        rows = {condition: counting.run(request) for condition, request in wanted.items()}
    macs = {condition: row.count.macs for condition, row in rows.items() if row.count is not None}
    return replace(plan, macs={**plan.macs, **macs})


def _unknown(plan: Plan) -> Iterable[Planned]:
    """Cells that can run, measure more than a count, and whose iteration has no estimate."""
    return (
        planned
        for planned in plan.cells
        if planned.decided is None
        and set(planned.cell.metrics) - {"count"}
        and plan.iteration_seconds(planned) is None
    )


def _counting(request: Request) -> Request:
    """The request to count the model of a cell and nothing else."""
    settings = request.settings.model_copy(update={"timeout_s": COUNT_LIMIT_S})
    cell = request.cell.model_copy(update={"metrics": ("count",)})
    return request.model_copy(update={"cell": cell, "settings": settings, "predictions_path": None})
