"""Every error this package raises on purpose, and the exit code of a command that ends with it.

    LongvisError (2)
    ├── UnknownName (2)         no model, card, column or option value has this name; lists near misses
    ├── IllegalSize (2)         the model cannot take this resolution; lists legal ones near it
    ├── IllegalArgument (2)     arguments of a model do not fit together; the message says which would
    ├── CardError (2)           a card does not follow the schema, or its factory does not exist
    ├── CheckpointError (2)     a weight or checkpoint file is corrupt, unsafe or of another model
    ├── DataError (2)           images or labels are missing, broken or do not fit the model
    ├── DeviceError (2)         this machine does not have the device or the dtype
    ├── RunDirectoryError (2)   a results directory cannot be written, read or continued
    ├── MissingDependency (3)   a package is not installed; the message has the install command
    ├── Unsupported (1)         the model or the backend does not support this combination
    └── InvalidOutput (1)       the model's output is not finite logits of the declared shape

A message is one sentence for the user: what is wrong, then what would be right.
Inside a cell, `measure/exception_status.py` turns these errors into the row's status; outside, `cli/guard.py`
prints the message and exits with `exit_code`.  Any other exception is a bug of the harness: exit code 70.
`HarnessFault` carries such an exception from a cell's process to the command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class LongvisError(Exception):
    """Base class; `exit_code` is the documented exit code of a command that ends with this error."""

    exit_code: ClassVar[int] = 2


class UnknownName(LongvisError):
    """An unknown name; the message suggests up to three similar ones.

    Arguments:
        kind: kind of thing that was looked up, e.g. "model".
        name: the name as the user gave it.
        known: all valid names.
        hint: advice if no valid name is similar; by default the list of all valid names.
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
        resolution: the requested resolution: pixels per side, or a `Rectangle`.
        why: the rule that it breaks, e.g. "atlas needs multiples of 16 px".
        legal: legal resolutions near it, in pixels; the message lists them.
    """

    def __init__(self, resolution: object, why: str, legal: Sequence[Any] = ()) -> None:
        self.resolution = resolution
        self.legal: tuple[Any, ...] = tuple(legal)
        near = f"; legal sizes near it: {', '.join(map(str, self.legal))}" if self.legal else ""
        super().__init__(f"{resolution} px is not a legal size: {why}{near}.")


class IllegalArgument(LongvisError, ValueError):
    """Arguments of a model that do not fit together; the message says which would."""


class CardError(LongvisError):
    """A card that does not follow the schema, or whose factory cannot be found or called."""


class CheckpointError(LongvisError):
    """A weight or checkpoint file that is corrupt, unsafe, or belongs to another model."""


class DataError(LongvisError):
    """A dataset that is missing, broken, or does not fit the model."""


class DeviceError(LongvisError):
    """A device, dtype or thread count that this machine does not have."""


class RunDirectoryError(LongvisError):
    """A results directory that cannot be written, read, or continued."""


class MissingDependency(LongvisError):
    """An optional package that is not installed.

    Arguments:
        package: distribution or module that is missing.
        why: subject of the sentence "... needs the package", e.g. a model's name.
        install: the exact command that installs it.
    """

    exit_code = 3

    def __init__(self, package: str, why: str, install: str) -> None:
        self.package = package
        self.install = install
        super().__init__(f"{why} needs the package {package}; install it with: {install}")


class Unsupported(LongvisError):
    """A combination of model, dtype, device and backend that is not supported."""

    exit_code = 1


class NoMaps(Unsupported):
    """A model that offers no maps of its backbone."""


class InvalidOutput(LongvisError):
    """A model whose output is not finite logits, or maps, of the declared shape."""

    exit_code = 1


class HarnessFault(Exception):
    """A bug of the harness in a cell's process: reported as an internal error, not as a status of the cell.

    Arguments:
        trace: the traceback from that process.
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
