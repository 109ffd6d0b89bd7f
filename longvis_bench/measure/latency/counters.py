"""Counters of the system for this process: page faults, involuntary context switches, thread migrations."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from longvis_bench.records import CountersRecord

_FIELD = re.compile(r"^(?:se\.)?(nr_migrations|nr_switches)\s*:\s*(\d+)", re.MULTILINE)


class CounterWatch:
    """Counts from its construction on."""

    def __init__(self) -> None:
        self._before = _now()

    def read(self) -> CountersRecord:
        """The counts since construction."""
        after = _now()
        return CountersRecord(**{name: _passed(self._before[name], after[name]) for name in after})


def _passed(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _now() -> dict[str, int | None]:
    if sys.platform == "win32":
        return dict.fromkeys(CountersRecord.model_fields)
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "page_faults": usage.ru_minflt + usage.ru_majflt,
        "context_switches": usage.ru_nivcsw,
        "migrations": _migrations(),
    }


def _migrations() -> int | None:
    """Migrations of all live threads; None where the kernel keeps no such statistics."""
    total = {"nr_migrations": 0, "nr_switches": 0}
    for thread in Path("/proc/self/task").glob("*/sched"):
        try:
            text = thread.read_text()
        except OSError:  # the thread has ended since the listing
            continue
        for name, count in _FIELD.findall(text):
            total[name] += int(count)
    # some sandboxes print zeros: a process without a single switch has no statistics
    return total["nr_migrations"] if total["nr_switches"] else None
