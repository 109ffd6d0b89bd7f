"""The commands of a run: its run.json lists every different command, in order.

    environment     the environment of all rows of the directory
    invocations     longvis, created, command, config, shard and cut of each command
    merged          names of the merged runs, after `longvis merge`

`config` is the resolved configuration, which `--config run.json` replays.  run.json contains no absolute
path: paths below the working directory are relative to it; of others only the last part is stored and the
field is listed in `cut`, and the user must give them again for a replay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longvis_bench.errors import LongvisError
from longvis_bench.records import Environment
from longvis_bench.runs.directory import RunDirectory
from longvis_bench.runs.migrations import migrate_run
from longvis_bench.sweep.config import SweepConfig
from longvis_bench.text import without_paths
from longvis_bench.version import __version__

_SAME = ("longvis", "config", "shard")
"""Commands with equal values of these fields are recorded once."""
_OPTIONS = {
    "weights": "--weights",
    "models_dirs": "--models-dir",
    "models": "--models",
    "data": "--data",
    "classes": "--classes",
}


@dataclass(frozen=True)
class Invocation:
    """One command, as stored in run.json."""

    config: dict[str, Any]
    command: str | None = None
    shard: str | None = None
    """`2/8`: the second of eight parts of the configuration's cells."""
    cut: tuple[str, ...] = ()
    """Fields of `config` whose paths are stored in part."""
    longvis: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def invocation_of(config: SweepConfig, command: str | None, shard: str | None = None) -> Invocation:
    """The record of a command from its resolved configuration."""
    content = config.model_dump(mode="json")
    cut = []
    for name in _OPTIONS:
        stored = _stored(content[name])
        if stored != _relative(content[name]):
            cut.append(name)
        content[name] = stored
    return Invocation(content, command and without_paths(command), shard, tuple(cut))


def _relative(value: Any) -> Any:
    """A value of the configuration with paths below the working directory made relative to it."""
    if isinstance(value, list):
        return [_relative(item) for item in value]
    here = f"{Path.cwd()}/"
    return value.removeprefix(here) if isinstance(value, str) else value


def _stored(value: Any) -> Any:
    if isinstance(value, list):
        return [_stored(item) for item in value]
    return without_paths(_relative(value)) if isinstance(value, str) else value


def record(
    directory: RunDirectory, run: Mapping[str, Any] | None, invocation: Invocation, environment: Environment
) -> None:
    """Add a command to a directory's run.json, unless it is listed already.

    Arguments:
        directory: open for writing.
        run: content of its run.json; None if there is none yet.
        invocation: the command.
        environment: of the command's rows.
    """
    known = [] if run is None else list(run["invocations"])
    new = json.loads(json.dumps(asdict(invocation)))
    if any(all(old.get(name) == new[name] for name in _SAME) for old in known):
        return
    first = {"environment": environment.model_dump(mode="json")}
    directory.write_run({**(run or first), "invocations": [*known, new]})


def read_replay(text: str, where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options to replay a run.json: those of its last command.

    Arguments:
        text: the file's content.
        where: its name in messages.
        given: options of the current command line, which replace stored ones.

    Raises:
        ValueError, KeyError, TypeError: the text is not a run.json.
        LongvisError: a path is stored in part, and the command line does not give it.
    """
    last = migrate_run(json.loads(text), where)["invocations"][-1]
    missing = [name for name in last["cut"] if given.get(name) is None]
    if missing:
        options = " and ".join(_OPTIONS[name] for name in missing)
        raise LongvisError(
            f"{where} cannot be replayed as it is: it stores no path outside the working directory, "
            f"so give {options} again."
        )
    return dict(last["config"])
