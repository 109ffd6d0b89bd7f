"""The first reference runs on a GPU, in pieces of under 10 minutes that continue where they were stopped.

    python scripts/gpu_reference.py --list                    the pieces
    python scripts/gpu_reference.py --piece 1 [--device cuda]  one piece; give it again to continue it
    python scripts/gpu_reference.py --dry-run                 let `longvis bench` plan every piece

Each piece is one `longvis bench` into a directory of its own under `--out` (results/runs/gpu), which resumes:
cells that have a row are not measured again.  No GPU has run them yet.  Run `make gpu` first; runs to be
published are copied to results/reference, where longvis never writes.  Atlas' authors publish no package:
scripts/golden/ratios.py compares ours with a checkout of their code.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from longvis_bench.cli.app import app

PAPER = "atlas-b,mambavision-b,vit-b,swin-b,longvit-b,fastervit-4,convnext-b"
TRAIN = ("--mode", "train", "--dtype", "bf16", "--metrics", "count,time,memory")
PIECE_LIMIT_S = 570
"""Seconds after which a piece is stopped, to be continued by the same command."""
LONG = ("--budget", "8", "--timeout", "120")


class Piece(NamedTuple):
    """One command."""

    name: str
    what: str
    options: tuple[str, ...]
    needs: str | None = None
    """A package without which it is not run."""


def train(resolution: int, batch: int, *more: str, models: str = PAPER) -> tuple[str, ...]:
    """Options of a training step."""
    return ("--models", models, "--res", str(resolution), "--batch", str(batch), *TRAIN, *LONG, *more)


def wide(mode: str, batch: int) -> tuple[str, ...]:
    """Options of the two linear-time models from 1024 to 4096 px."""
    sizes = ("--models", "atlas-s,mambavision-s", "--res", "1024,2048,4096", "--batch", str(batch))
    return (*sizes, "--mode", mode, "--dtype", "bf16", *LONG)


def twice(name: str, what: str, options: tuple[str, ...]) -> tuple[Piece, Piece]:
    """A piece and its repetition, for the spread between runs."""
    return Piece(name, what, options), Piece(f"{name}-again", "the same once more", options)


CONTIGUOUS = ("--memory-format", "contiguous")
PIECES = (
    *twice("train-1024-b16", "train step of the paper's models at 1024 px, batch 16", train(1024, 16)),
    *twice("train-1024-b32", "at the paper's batch 32; what does not fit is a row `oom`", train(1024, 32)),
    *twice("train-512-b16", "train step at 512 px, batch 16", train(512, 16)),
    *twice("train-512-b32", "train step at 512 px, batch 32", train(512, 32)),
    *twice(
        "convnext-contiguous-b16",
        "ConvNeXt-B in the other memory format: the paper's figure is 3 % of peak",
        train(1024, 16, *CONTIGUOUS, models="convnext-b"),
    ),
    *twice(
        "convnext-contiguous-b32",
        "ConvNeXt-B in the other memory format, batch 32",
        train(1024, 32, *CONTIGUOUS, models="convnext-b"),
    ),
    Piece("wide-infer", "Atlas-S and MambaVision-S, inference at 1024-4096 px", wide("infer", 1)),
    Piece("wide-train", "Atlas-S and MambaVision-S, train step at 1024-4096 px", wide("train", 1)),
    Piece("default", "what `longvis bench` does without options, a first look", ("--quick",)),
    Piece(
        "authors",
        "MambaVision's authors' code beside ours, inference at 1024 px",
        ("--models", "mambavision-b,mambavision-b@upstream", "--res", "1024", "--dtype", "bf16", *LONG),
        needs="mambavision",
    ),
)


def arguments(piece: Piece, out: Path, device: str) -> list[str]:
    """The arguments of `longvis` for a piece."""
    return ["bench", *piece.options, "--device", device, "--out", str(out / piece.name)]


def lacks(piece: Piece) -> bool:
    """Whether the package that a piece needs is absent, which is said."""
    if piece.needs is None or importlib.util.find_spec(piece.needs) is not None:
        return False
    print(f"{piece.name}: not run, because the package {piece.needs} is not installed", file=sys.stderr)
    return True


def plan(piece: Piece, out: Path, device: str) -> int:
    """Let longvis plan a piece in this process, which imports torch once for all pieces; its exit code."""
    if lacks(piece):
        return 0
    try:
        app([*arguments(piece, out, device), "--dry-run"], prog_name="longvis")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def run(piece: Piece, out: Path, device: str) -> int:
    """Run a piece; its exit code, and 124 where it was stopped to be continued."""
    if lacks(piece):
        return 3
    process = subprocess.Popen([sys.executable, "-m", "longvis_bench", *arguments(piece, out, device)])
    try:
        return process.wait(PIECE_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # longvis ends its cells and keeps their rows
        process.wait()
        print(
            f"{piece.name}: stopped after {PIECE_LIMIT_S} s; the same command continues it", file=sys.stderr
        )
        return 124


def main() -> int:
    """List, plan or run pieces."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="list the pieces and stop")
    parser.add_argument("--piece", type=int, metavar="N", choices=range(1, len(PIECES) + 1), help="run one")
    parser.add_argument("--dry-run", action="store_true", help="let longvis plan the pieces; measure nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("results/runs/gpu"))
    asked = parser.parse_args()
    if asked.piece is None and not asked.dry_run:
        for number, piece in enumerate(PIECES, start=1):
            print(f"{number:2}  {piece.name:24} {piece.what}")
        return 0
    chosen = PIECES if asked.piece is None else (PIECES[asked.piece - 1],)
    do = plan if asked.dry_run else run
    return max(do(piece, asked.out, asked.device) for piece in chosen)


if __name__ == "__main__":
    sys.exit(main())
