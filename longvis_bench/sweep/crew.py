"""Work off a sweep's cells on several devices at once: a thread per device takes cells from one queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import Event, RLock, Thread
from typing import TypeVar

from longvis_bench.isolation.runner import TICK_S, Runner
from longvis_bench.sweep.devices import Slot
from longvis_bench.sweep.plan import Planned
from longvis_bench.sweep.reporter import Reporter

T = TypeVar("T")
Work = Callable[[T, Runner, Slot], object]
"""Runs one job on one device; called in the device's thread."""


class Crew:
    """The devices at work.

    Arguments:
        slots: the devices.
        open_runner: opens what runs cells on a device.
    """

    def __init__(
        self, slots: Sequence[Slot], open_runner: Callable[[Slot], AbstractContextManager[Runner]]
    ) -> None:
        self._slots, self._open_runner = slots, open_runner
        self.mutex = RLock()
        """Held by whoever changes what the devices share."""
        self._stop = Event()

    def look(self) -> None:
        """End the job of a device if the sweep ends; called several times a second in the device's thread.

        Raises:
            KeyboardInterrupt: the sweep ends.
        """
        if self._stop.is_set():
            raise KeyboardInterrupt

    def work_off(self, jobs: Iterable[T], work: Work[T], tick: Callable[[], object]) -> None:
        """Do all jobs, each once, in their order, on whatever device is free.

        Arguments:
            jobs: their order is that in which they start.
            work: does one.
            tick: called several times a second in this thread.

        Raises:
            KeyboardInterrupt: the user interrupted; the jobs that ran have been ended.
            Exception: the first one that a job raised; the other jobs have been ended.
        """
        queue, failures = deque(jobs), list[BaseException]()
        threads = [
            Thread(target=self._serve, args=(slot, queue, work, failures), name=slot.name, daemon=True)
            for slot in self._slots
        ]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(TICK_S / len(threads))
                with self.mutex:
                    tick()
        finally:
            self._stop.set()  # after the last job nobody looks
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()
            self._stop.clear()
        if failures:
            raise failures[0]

    def _serve(self, slot: Slot, queue: deque[T], work: Work[T], failures: list[BaseException]) -> None:
        try:
            with self._open_runner(slot) as runner:
                while (job := self._next(queue)) is not None:
                    work(job, runner, slot)
        except BaseException as error:
            with self.mutex:
                failures.append(error)
            self._stop.set()

    def _next(self, queue: deque[T]) -> T | None:
        with self.mutex:
            return queue.popleft() if queue and not self._stop.is_set() else None


class Beside(Reporter):
    """What a device's thread tells the reporter: notes, and never at the same time as another thread."""

    def __init__(self, reporter: Reporter, crew: Crew) -> None:
        self._reporter, self._crew = reporter, crew

    def note(self, sentence: str) -> None:
        """See Reporter."""
        with self._crew.mutex:
            self._reporter.note(sentence)

    def tick(self) -> None:
        """End the cell if the sweep ends; the sweep's own thread tells the reporter that time passes."""
        self._crew.look()


def shared_order(
    cells: Sequence[Planned], seconds: Sequence[float], measured: Collection[str] = ()
) -> list[Planned]:
    """The order in which several devices take cells.

    After those that cannot run, the cheapest cell of each model comes first, so that every model has a row
    soon; then the longest come first, so that no long cell starts last and leaves the other devices idle.

    Arguments:
        cells: cheap ones first.
        seconds: estimated duration of each.
        measured: models that have a row already.
    """
    decided = [index for index, planned in enumerate(cells) if planned.decided is not None]
    numbered = sorted(set(range(len(cells))) - set(decided), key=lambda index: (seconds[index], index))
    seen, first = set(measured), list[int]()
    for index in numbered:
        if cells[index].cell.model not in seen:
            seen.add(cells[index].cell.model)
            first.append(index)
    rest = sorted(set(numbered) - set(first), key=lambda index: (-seconds[index], index))
    return [cells[index] for index in (*decided, *first, *rest)]
