"""Acceptance run on a machine with an NVIDIA GPU: every CUDA path once, in one JSON report.

    python scripts/gpu_check.py REPORT.json [--only NAME,NAME] [--device cuda:1] [--list]

`make gpu` writes gpu_check/report.json.  Each check has its verdict (`ok`, `failed`, `skipped`), criterion,
figures and seconds; the report is written after every check, and a second run with the same file runs again
only what is not `ok` yet, or what `--only` names.  The whole takes under 8 minutes on an H100.

No GPU has run this script yet.  Its tolerances follow from the dtypes; limits on time and rates are guesses,
and the first run is to set them.  The check `packages` lists the wheels that a bare machine with torch lacks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import gmtime, strftime

import torch

from gpu_checks import CHECKS
from gpu_checks.check import Context, Figures, run
from longvis_bench.files import write_whole
from longvis_bench.measure.latency.clock import use_device


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, nargs="?", help="JSON file; runs lie beside it")
    parser.add_argument("--only", default="", metavar="NAMES", help="run these checks, also if they are ok")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", action="store_true", help="list the checks and stop")
    asked = parser.parse_args()
    unknown = sorted(set(filter(None, asked.only.split(","))) - set(CHECKS))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if asked.report is None and not asked.list:
        parser.error("name the report's file, e.g. report.json")
    return asked


def main() -> int:
    """Run the checks that are asked for and not ok yet; the exit code is 1 if one of the report failed."""
    asked = options()
    if asked.list:
        print("\n".join(f"{one.name}: {one.criterion}" for one in CHECKS.values()))
        return 0
    if not torch.cuda.is_available():
        print("torch sees no CUDA device here; nothing was checked.", file=sys.stderr)
        return 3
    report: Figures = json.loads(asked.report.read_text()) if asked.report.exists() else {"checks": {}}
    asked.report.parent.mkdir(parents=True, exist_ok=True)
    use_device(torch.device(asked.device))
    context = Context(asked.device, asked.report.resolve().parent)
    done = {name for name, entry in report["checks"].items() if entry["verdict"] == "ok"}
    for name in asked.only.split(",") if asked.only else [name for name in CHECKS if name not in done]:
        entry = run(CHECKS[name], context)
        report["checks"][name] = {
            **entry,
            "at": strftime("%FT%TZ", gmtime()),
            "device": _device(context.device),
        }
        text = json.dumps(report, indent=1, default=str)
        write_whole(asked.report, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
        late = "" if entry["seconds"] <= entry["limit_s"] else f", more than {entry['limit_s']} s"
        print(
            f"{entry['verdict']:8}{name}  {entry['seconds']} s{late}  {entry.get('reason', '')}", flush=True
        )
    return int(any(entry["verdict"] == "failed" for entry in report["checks"].values()))


def _device(device: str) -> str:
    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    sys.exit(main())
