"""Parts of a sweep for several machines: which cells are in which part, and which part this process runs.

Every machine computes the same parts from the configuration alone, so they need not talk to each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from longvis_bench import units
from longvis_bench.errors import LongvisError
from longvis_bench.sweep.plan import Plan

Asked = tuple[int, int] | Literal["auto"]
"""(2, 8): the second of eight parts; `auto`: the part of this task of a SLURM array."""

_TASK = "SLURM_ARRAY_TASK_ID"
_ARRAY = {name: f"SLURM_ARRAY_TASK_{name}" for name in ("COUNT", "MIN", "MAX")}
_FORM = "sbatch --array=1-8"


def deal(seconds: Sequence[float], parts: int) -> list[int]:
    """Divide cells into parts of about equal work: the longest first, each to the part with the least so far.

    Where no cell has more than a third of a part's mean work, no part has more than 4/3 of it (Graham, 1969,
    "Bounds on multiprocessing timing anomalies").

    Arguments:
        seconds: estimated duration of each cell.
        parts: how many there are.

    Returns:
        The number of each cell's part, from 1.
    """
    heap = [(0.0, 0, number) for number in range(1, parts + 1)]
    part = [0] * len(seconds)
    for index in sorted(range(len(seconds)), key=lambda index: (-seconds[index], index)):
        work, cells, number = heapq.heappop(heap)
        part[index] = number
        heapq.heappush(heap, (work + seconds[index], cells + 1, number))
    return part


def take_part(plan: Plan, number: int, parts: int) -> Plan:
    """The plan of one part, which lists the cells of all parts.

    Raises:
        LongvisError: there is no such part, or it has no cells.
    """
    if not 1 <= number <= parts:
        raise LongvisError(f"there is no shard {number} of {parts}: give 1/{parts} to {parts}/{parts}.")
    dealt = deal(plan.seconds, parts)
    cells = tuple(planned for planned, part in zip(plan.cells, dealt, strict=True) if part == number)
    if not cells:
        raise LongvisError(
            f"shard {number}/{parts} is empty: the sweep has {units.several(len(plan.cells), 'cell')}."
        )
    return replace(plan, cells=cells, part=plan.parted(dealt, number, parts))


def read_part(asked: Asked, variables: Mapping[str, str]) -> tuple[int, int]:
    """The part to run and the number of parts.

    Arguments:
        asked: what `--shard` says.
        variables: the environment's, with those of SLURM in a task of an array.

    Raises:
        LongvisError: `auto` outside of an array, or in one whose tasks cannot be numbered; or the part is not
            that of this task.
    """
    if asked == "auto":
        return _part_of_task(variables)
    task = variables.get(_TASK, "")
    if task.isdecimal() and asked[0] not in (int(task), int(task) + 1):  # arrays start at 1, or at 0
        raise LongvisError(
            f"--shard {asked[0]}/{asked[1]} contradicts {_TASK}={task}: all tasks of the array would measure "
            f"the same part; give --shard ${_TASK}/{asked[1]}, or unset {_TASK}."
        )
    return asked


def _part_of_task(variables: Mapping[str, str]) -> tuple[int, int]:
    if _TASK not in variables:
        raise LongvisError(
            f"--shard auto needs the variables of a SLURM array, and {_TASK} is not set: submit with "
            f"{_FORM}, or give --shard K/N."
        )
    values = {name: _number(variables, name) for name in (_TASK, *_ARRAY.values()) if name in variables}
    task = values[_TASK]
    if _ARRAY["COUNT"] not in values:
        raise LongvisError(f"--shard auto needs {_ARRAY['COUNT']}, which is not set; give --shard {task}/N.")
    count = values[_ARRAY["COUNT"]]
    first = values.get(_ARRAY["MIN"], 1)
    last = values.get(_ARRAY["MAX"], first + count - 1)
    if first not in (0, 1) or last - first + 1 != count:
        raise LongvisError(
            f"--shard auto cannot number the tasks of this array, {count} from {first} to {last}: it takes "
            f"all numbers from 0 or 1 on ({_FORM}); to run one part again, give --shard ${_TASK}/N."
        )
    if not first <= task <= last:
        raise LongvisError(f"{_TASK}={task} contradicts the array, whose tasks are {first} to {last}.")
    return task - first + 1, count


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables[name].strip()
    if not (text.isascii() and text.isdecimal()):
        raise LongvisError(f"--shard auto: {name} must be a whole number, not {text[:40]!r}.")
    return int(text)
