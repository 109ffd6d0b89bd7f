"""Every error this package raises on purpose, with the exit code it ends a command with.

    LongvisError (2)
    ├── UnknownName (2)         a model, card, column or option value nobody knows; lists near misses
    ├── IllegalSize (2)         a resolution the model cannot take; lists legal ones near it
    ├── IllegalArgument (2)     arguments of a model that do not fit together; says what would
    ├── CardError (2)           a card that does not follow the schema, or a factory that is not there
    ├── CheckpointError (2)     a weight file that is corrupt, unsafe or of another model
    ├── DataError (2)           images or labels that are missing, broken or do not fit
    ├── DeviceError (2)         a device or dtype this machine does not have
    ├── RunDirectoryError (2)   a results directory that cannot be written, read or continued
    ├── MissingDependency (3)   a package that is not installed; carries the install command
    ├── Unsupported (1)         a combination the model or the backend does not do
    └── InvalidOutput (1)       a model whose output is not logits of the promised shape, or not finite

A message is one sentence for the user: what is wrong, then what would be right.
Inside a cell these become the row's status (`worker.py`); outside, `cli/guard.py` prints the message
and exits with `exit_code`.  What is none of these is a fault of ours: exit 70.  `HarnessFault` brings one
from a cell's process to the command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class LongvisError(Exception):
    """Base class; `exit_code` is the documented exit code of a command that ends with it."""

    exit_code: ClassVar[int] = 2


class UnknownName(LongvisError):
    """A name that nothing answers to.

    Arguments:
        kind: what was looked up, e.g. "model".
        name: the name as the user gave it.
        known: all names there are; up to three near misses are shown, else where to see them all.
        hint: replaces the default advice when nothing is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.known = sorted(known)
        near = difflib.get_close_matches(name.lower(), self.known, n=3, cutoff=0.5)
        if near:
            advice = f"did you mean {_either(near)}?"
        else:
            advice = hint or f"known: {', '.join(self.known)}."
        super().__init__(f"unknown {kind} {name!r}: {advice}")


class IllegalSize(LongvisError):
    """A resolution the model cannot take.

    Arguments:
        resolution: pixels per side, as asked.
        why: the rule that is broken, e.g. "atlas needs multiples of 16 px".
        legal: legal resolutions near it, in pixels; shown in the message.
    """

    def __init__(self, resolution: int, why: str, legal: Sequence[int] = ()) -> None:
        self.resolution = resolution
        self.legal = tuple(legal)
        near = f"; legal sizes near it: {', '.join(map(str, self.legal))}" if self.legal else ""
        super().__init__(f"{resolution} px is not a legal size: {why}{near}.")


class IllegalArgument(LongvisError, ValueError):
    """Arguments of a model that do not fit together; the message says what would."""


class CardError(LongvisError):
    """A card that does not follow the schema, or whose factory cannot be found or called."""


class CheckpointError(LongvisError):
    """A weight file that is corrupt, unsafe, or belongs to another model."""


class DataError(LongvisError):
    """A data set that is missing, broken, or does not fit the model."""


class DeviceError(LongvisError):
    """A device, dtype or thread count that this machine does not have."""


class RunDirectoryError(LongvisError):
    """A results directory that cannot be written, read, or continued."""


class MissingDependency(LongvisError):
    """An optional package that is not installed.

    Arguments:
        package: distribution or module that is missing.
        why: what needs it.
        install: the exact command that adds it.
    """

    exit_code = 3

    def __init__(self, package: str, why: str, install: str) -> None:
        self.package = package
        self.install = install
        super().__init__(f"{why} needs the package {package}; install it with: {install}")


class Unsupported(LongvisError):
    """A combination of model, dtype, device or backend that does not exist."""

    exit_code = 1


class InvalidOutput(LongvisError):
    """A model whose output is not finite logits of the promised shape."""

    exit_code = 1


class HarnessFault(Exception):
    """A fault of our own measuring code in a cell's process: no status of the cell, but "internal error".

    Arguments:
        trace: the traceback there.
    """

    def __init__(self, trace: str) -> None:
        lines = trace.splitlines()
        frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
        after = lines[frames[-1] + 1 :] if frames else lines[1:] or lines
        super().__init__(next((line for line in after if line[:1].strip()), "unknown"))
        self.trace = trace


def _either(names: Sequence[str]) -> str:
    """`["a", "b", "c"]` -> `a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
