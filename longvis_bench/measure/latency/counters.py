"""What the system counts for this process: page faults, forced context switches, migrations of threads."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from longvis_bench.records import CountersRecord

_FIELD = re.compile(r"^(?:se\.)?(nr_migrations|nr_switches)\s*:\s*(\d+)", re.MULTILINE)


class CounterWatch:
    """Starts counting when made."""

    def __init__(self) -> None:
        self._before = _now()

    def read(self) -> CountersRecord:
        """What was counted since."""
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
    """Of all threads that are alive; None where the kernel keeps no such statistics."""
    total = {"nr_migrations": 0, "nr_switches": 0}
    for thread in Path("/proc/self/task").glob("*/sched"):
        try:
            text = thread.read_text()
        except OSError:  # a thread that has ended meanwhile
            continue
        for name, count in _FIELD.findall(text):
            total[name] += int(count)
    # a process that was never switched has no statistics: some sandboxes print noughts
    return total["nr_migrations"] if total["nr_switches"] else None
