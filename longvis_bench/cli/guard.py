"""What every command does with errors: one sentence, the documented exit code, no traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import typer

from longvis_bench.errors import HarnessFault, LongvisError
from longvis_bench.text import clean

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
INTERNAL_ERROR = 70
BAD_INPUT = LongvisError.exit_code
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""No path of ours meets these: the user gave one that no file system takes."""


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that it ends with a sentence and an exit code, whatever is raised."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except LongvisError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted.", INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()  # the reader is gone; do not let the interpreter complain at exit
            raise typer.Exit(1) from None
        except Exception as error:
            if hasattr(error, "format_message"):  # typer's: the command line could not be parsed
                raise
            fail(*_unforeseen(error))

    return run


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence to standard error and end the command."""
    raise typer.Exit(explain(message, code))


def explain(message: str, code: int) -> int:
    """Print one sentence to standard error; the exit code is handed through."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(clean(message), markup=False)
    return code


def sentence(text: str) -> str:
    """A message of a library as a part of ours: small first letter, no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _unforeseen(error: Exception) -> tuple[str, int]:
    """Message and exit code of an exception that is no LongvisError."""
    if isinstance(error, OSError) and error.errno in NO_PATH:
        return f"{str(error.filename)[:40]}... cannot be a path: {error.strerror}.", BAD_INPUT
    if isinstance(error, OSError) and error.filename is None and _output_is_full():
        return f"cannot write to standard output: {error.strerror}.", BAD_INPUT
    return _internal(error), INTERNAL_ERROR


def _output_is_full() -> bool:
    """Whether standard output takes no more; an end of line more does no harm where it does."""
    try:
        os.write(1, b"\n")
    except OSError:
        return True
    return False


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
        return "internal error; please report it with the traceback above, which could not be saved."
    return f"internal error; please report it with the traceback in {Path(file.name)}."
