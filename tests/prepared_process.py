"""A process that has torch imported and forks the fork servers of a test session: `longvis_bench.isolation`.

A fork server takes seconds to start, for its imports, and most tests of sweeps need one each.  Started from
here it is what it is otherwise, a process of its own with its pipes, environment and working directory, with
the imports done.  As a server, this process executes no tensor operation before it forks.

    python tests/prepared_process.py DESCRIPTOR FOLDER

DESCRIPTOR is a socket: each message is a request, with the descriptors of standard input, output, error, and
of a pipe that gets two lines: the process's number, and its exit code (or minus its signal) when it ends.
FOLDER holds the package.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn


def main() -> None:
    """Fork until the other end closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.path.append(sys.argv[2])
    _import_heavy()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the system
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 4)
        if not message:
            return
        if os.fork() == 0:
            _keep(json.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _import_heavy() -> None:
    """What a fork server imports and reads before it answers."""
    import timm  # noqa: F401

    import longvis_bench.isolation.fork_server
    import longvis_bench.measure.cell  # noqa: F401
    from longvis_bench.data.digits import read_scans
    from longvis_bench.registry.registry import preload

    preload()
    read_scans()


def _keep(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Fork a server, wait for it, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, answers = descriptors
    pid = os.fork()
    if pid == 0:
        _serve(request, standard)
    for descriptor in standard:
        os.close(descriptor)
    os.write(answers, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _serve(request: dict[str, Any], standard: list[int]) -> NoReturn:
    """Be the fork server that was asked for."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["-c"]
    try:
        from longvis_bench.isolation.fork_server import main as serve

        serve()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
