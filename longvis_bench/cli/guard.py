"""What every command does with errors: one sentence, the documented exit code, no traceback."""

from __future__ import annotations

import errno
import functools
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec

import typer
from rich.console import Console

from longvis_bench.errors import HarnessFault, LongvisError
from longvis_bench.text import clean

P = ParamSpec("P")

INTERRUPTED = 130
INTERNAL_ERROR = 70
BAD_INPUT = LongvisError.exit_code
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""No path of ours meets these: the user gave one that no file system takes."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command so that it ends with a sentence and an exit code, whatever is raised."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except LongvisError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted.", INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()  # nobody reads on; do not let the interpreter complain at exit
            raise typer.Exit(1) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_PATH:
                fail(f"{str(error.filename)[:40]}... cannot be a path: {error.strerror}.", BAD_INPUT)
            fail(_internal(error), INTERNAL_ERROR)

    return run


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence to standard error and end the command."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(clean(message), markup=False)
    raise typer.Exit(code)


def _internal(error: Exception) -> str:
    """Save the traceback, a cell's own where it comes from one; on a full disk it goes to standard error."""
    trace = error.trace if isinstance(error, HarnessFault) else "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="longvis-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(trace)
    except OSError:
        sys.stderr.write(trace)
        return "internal error; please report it with the traceback above, which no file would take."
    return f"internal error; please report it with the traceback in {Path(file.name)}."
