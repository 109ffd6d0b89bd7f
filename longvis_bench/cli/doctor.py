"""`longvis doctor`: what this machine can run, and the command that would add what is missing."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from longvis_bench import units


def doctor() -> None:
    """Say what this machine can run, and how to add what is missing; exit code 1 if something needed is."""
    from longvis_bench.cli.diagnosis import examine

    console = Console(highlight=False, soft_wrap=True)
    findings = examine()
    for finding in findings:
        mark = {"ok": "[green]ok[/]     ", "absent": "[yellow]absent[/] ", "broken": "[bold red]broken[/] "}
        advice = f"; {finding.advice}" if finding.advice else ""
        console.print(f"{mark[finding.state]} {escape(finding.what)}{escape(advice)}")
    broken = sum(finding.state == "broken" for finding in findings)
    console.print(f"{units.plain(len(findings))} things looked at, {units.plain(broken)} broken")
    raise typer.Exit(1 if broken else 0)
