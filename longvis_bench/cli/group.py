"""Common behaviour of all commands: help, one style of errors, closed or full standard output."""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from longvis_bench.cli.guard import BAD_INPUT, explain, guarded, sentence
from longvis_bench.errors import LongvisError
from longvis_bench.text import ascii_instead

_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


class Command(TyperCommand):
    """A command that shows no type for flags in `--help` and rejects empty values."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters in the order of the help, with `--help` last, in the last panel."""
        params = _without_flag_types(super().get_params(ctx))
        panels = [getattr(param, "rich_help_panel", None) for param in params]
        if params[-1].name == "help":
            params[-1].rich_help_panel = next((panel for panel in reversed(panels) if panel), None)
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, after checks that typer does not make.

        Raises:
            LongvisError: an option has an empty value, or an option with one value is given twice.
        """
        _refuse_empty(args)
        for param in self.params:
            if not (getattr(param, "multiple", True) or getattr(param, "is_flag", False)):
                _refuse_repeated(param.opts, args)
        return super().parse_args(ctx, args)


class LateCommand(Command):
    """A command whose module is imported when its parameters, its help or its function are needed.

    Arguments:
        name: of the command.
        module: in `longvis_bench.cli`; the command is the function of the same name in it.
        line: the first sentence of its help, which the list of commands shows.
    """

    def __init__(self, name: str, module: str, line: str) -> None:
        super().__init__(name, short_help=line)
        self._module = module
        for late in _LATE:
            delattr(self, late)

    def __getattr__(self, name: str) -> Any:
        """The attributes that come with the module, all at the first need of one."""
        if name not in _LATE:
            raise AttributeError(name)
        function = getattr(import_module(f"longvis_bench.cli.{self._module}"), self._module)
        alone = typer.Typer(add_completion=False)
        alone.command(cls=Command)(guarded(function))
        command = typer.main.get_command(alone)
        self.__dict__.update({late: getattr(command, late) for late in _LATE})
        return self.__dict__[name]


_LATE = ("callback", "params", "help")


class Group(TyperGroup):
    """The program: parsing errors are one sentence, as all errors, and `longvis` alone shows the help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters in the order of the help."""
        return _without_flag_types(super().get_params(ctx))

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> NoReturn:
        """Run a command and end the process with the documented exit code."""
        _open_closed_streams()
        words = list(sys.argv[1:] if args is None else args)
        code = _run(super().main, words or ["--help"], *more, **{**options, "standalone_mode": False})
        sys.exit(_flushed(code))


def _run(main: Any, *args: Any, **options: Any) -> int:
    try:
        code = guarded(main)(*args, **options)
    except typer.Exit as stop:
        code = stop.exit_code
    except typer.Abort:
        code = 1
    except SystemExit as stop:  # from typer, after a closed pipe or the installation of completion
        code = stop.code
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = explain(_usage(error), BAD_INPUT)
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """A sentence on the error of a command line, from typer's message."""
    message = str(error.format_message()).strip()
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "longvis"
    extra = re.search(r"unexpected extra arguments? ?(?:\(s\) )?\((.*)\)", message)
    if extra is not None:
        advice = "separate several values by commas, like 1024,2048, or repeat the option"
        return f"unexpected {extra[1]!r}: {advice}; see `{path} --help`."
    near = re.search(
        r"No such option: (\S+?)\.? *(?:\(Possible options?: (.*)\)|Did you mean (.*)\?)?$", message
    )
    if near is not None:
        meant = near[2] or near[3]
        advice = f"did you mean {meant}?" if meant else f"see `{path} --help`."
        return f"there is no option {near[1]}: {advice}"
    command = re.search(r"No such command '(.*?)'", message)
    if command is not None:
        found = re.search(r"Did you mean (.*)\?", message)
        advice = (
            f"did you mean {found[1].strip(chr(39))}?" if found else "`longvis --help` lists the commands."
        )
        return f"there is no command {command[1]!r}: {advice}"
    return f"{sentence(message)}; see `{path} --help`."


def _without_flag_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def _refuse_empty(args: Sequence[str]) -> None:
    for before, word in zip(["", *args], args, strict=False):
        if word == "--":
            return
        flag = before if word == "" else word.removesuffix("=") if re.fullmatch(r"--[\w-]+=", word) else ""
        if flag.startswith("-"):
            raise LongvisError(f"{flag} has an empty value: give one, or leave the option out.")


def _refuse_repeated(names: Sequence[str], args: Sequence[str]) -> None:
    """Raise if an option with one value is given twice, because typer would silently use the last."""
    words = args[: args.index("--")] if "--" in args else args
    given = [word for word in words if word in names or word.startswith(tuple(f"{name}=" for name in names))]
    if len(given) > 1:
        raise LongvisError(f"{names[0]} takes one value but is given {len(given)} times.")


def _open_closed_streams() -> None:
    """Replace standard streams that the caller closed (`>&-`), so that no opened file gets their number."""
    for number, name, mode in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        codecs.register_error("longvis", ascii_instead)
        sys.stdout.reconfigure(errors="longvis")


def _flushed(code: int) -> int:
    """Flush standard output; return the exit code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes again at exit
        if getattr(error, "errno", None) == errno.EPIPE:
            return code or 1
        return explain(f"cannot write to standard output: {error}.", BAD_INPUT)
    return code
