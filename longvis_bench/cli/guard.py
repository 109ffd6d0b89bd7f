"""Error handling of all commands: one sentence, the documented exit code, no traceback."""

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
"""Errors that only a path given by the user can cause, as no file system accepts it."""


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command so that every exception ends it with a sentence and an exit code."""

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
            sys.stderr.close()  # the reader is gone; keep the interpreter from reporting that at exit
            raise typer.Exit(1) from None
        except Exception as error:
            if hasattr(error, "format_message"):  # from typer: the command line could not be parsed
                raise
            fail(*_unforeseen(error))

    return run


def fail(message: str, code: int) -> NoReturn:
    """Print one sentence to standard error and end the command."""
    raise typer.Exit(explain(message, code))


def explain(message: str, code: int) -> int:
    """Print one sentence to standard error; return the exit code."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(clean(message), markup=False)
    return code


def sentence(text: str) -> str:
    """A library's message as a part of a sentence: lower-case first letter, no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _unforeseen(error: Exception) -> tuple[str, int]:
    """Message and exit code of an exception other than LongvisError."""
    if isinstance(error, OSError) and error.errno in NO_PATH:
        return f"{str(error.filename)[:40]}... cannot be a path: {error.strerror}.", BAD_INPUT
    if isinstance(error, OSError) and error.filename is None and _output_is_full():
        return f"cannot write to standard output: {error.strerror}.", BAD_INPUT
    return _internal(error), INTERNAL_ERROR


def _output_is_full() -> bool:
    """Whether standard output cannot be written, found by writing an end of line."""
    try:
        os.write(1, b"\n")
    except OSError:
        return True
    return False


def _internal(error: Exception) -> str:
    """Save the traceback (of the cell, if it has one) to a file, or print it if the disk is full."""
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
