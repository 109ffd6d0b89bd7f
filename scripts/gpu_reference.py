"""The first reference runs on a GPU, in pieces of under 10 minutes that continue where they were stopped.

    python scripts/gpu_reference.py --list                    the pieces
    python scripts/gpu_reference.py --piece 1 [--device cuda]  one piece; give it again to continue it
    python scripts/gpu_reference.py --dry-run                 let `longvis bench` plan every piece

Each piece is one `longvis bench` into a directory of its own under `--out` (results/reference/gpu), which
resumes: cells that have a row are not measured again.  By estimate about 30 minutes of an H100 in all; no GPU
has run them yet.  Run `make gpu` first.  Atlas' authors publish no package: scripts/golden/ratios.py compares
ours with a checkout of their code.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


PIECES = (
    Piece("train-1024-b16", "train step of the paper's models at 1024 px, batch 16", train(1024, 16)),
    Piece(
        "train-1024-b32",
        "the same at the paper's batch 32; what does not fit is a row `oom`",
        train(1024, 32),
    ),
    Piece("train-1024-b16-again", "batch 16 once more, for the spread between runs", train(1024, 16)),
    Piece("train-1024-b32-again", "batch 32 once more", train(1024, 32)),
    Piece(
        "convnext-contiguous-b16",
        "ConvNeXt-B in the other memory format: the paper's figure is 3 % of peak",
        train(1024, 16, "--memory-format", "contiguous", models="convnext-b"),
    ),
    Piece(
        "convnext-contiguous-b32",
        "the same at batch 32",
        train(1024, 32, "--memory-format", "contiguous", models="convnext-b"),
    ),
    Piece("train-512-b32", "train step at 512 px, batch 32", train(512, 32)),
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


def command(piece: Piece, out: Path, device: str) -> list[str]:
    """The command line of a piece."""
    where = ("--device", device, "--out", str(out / piece.name))
    return [sys.executable, "-m", "longvis_bench", "bench", *piece.options, *where]


def run(piece: Piece, out: Path, device: str, *, dry: bool) -> int:
    """Run a piece, or let it be planned; its exit code, and 124 where it was stopped to be continued."""
    if piece.needs is not None and importlib.util.find_spec(piece.needs) is None:
        print(f"{piece.name}: not run, because the package {piece.needs} is not installed", file=sys.stderr)
        return 0 if dry else 3
    line = [*command(piece, out, device), *(["--dry-run"] if dry else [])]
    process = subprocess.Popen(line)
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
    parser.add_argument("--out", type=Path, default=Path("results/reference/gpu"))
    asked = parser.parse_args()
    if asked.piece is None and not asked.dry_run:
        for number, piece in enumerate(PIECES, start=1):
            print(f"{number:2}  {piece.name:24} {piece.what}")
        return 0
    chosen = PIECES if asked.piece is None else (PIECES[asked.piece - 1],)
    codes = [run(piece, asked.out, asked.device, dry=asked.dry_run) for piece in chosen]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
