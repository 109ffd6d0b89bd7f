"""Where this package's own files lie, and how files appear on a disk."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of `longvis_bench` itself; what finds other files of the package starts here."""
