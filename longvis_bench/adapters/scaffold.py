"""The files `longvis new` writes: a model that works, to be changed into the user's own."""

from __future__ import annotations

import re
from pathlib import Path

from longvis_bench.errors import CardError, LongvisError
from longvis_bench.registry.registry import Registry

_CARD = """\
schema = 1
family = "{name}"
title = "{name}"
summary = "What it is, in one sentence."
factory = "{name}.py:build"
implementation = "user"

[licences]
code = "state yours"

[resolution]
multiple_of = 8

[variants.{name}]
arguments = {{ dim = 32 }}
summary = "a small convolutional network"
"""

_MODEL = '''\
"""{name}: replace this network by your own.

Keep the signature of `build`: `longvis` calls it with the resolution and the number of classes, plus the
variant's arguments from card.toml.
"""

from torch import nn


def build(*, resolution: int, num_classes: int, in_chans: int = 3, dim: int = 32) -> nn.Module:
    """(batch, in_chans, resolution, resolution) -> logits (batch, num_classes)."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim, kernel_size=8, stride=8),
        nn.BatchNorm2d(dim),
        nn.GELU(),
        nn.Conv2d(dim, dim, kernel_size=3, padding=1),
        nn.BatchNorm2d(dim),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(dim, num_classes),
    )
'''

_TEST = '''\
"""The checks of `longvis check {name}`, for pytest."""

from pathlib import Path

import pytest

from longvis_bench.conformance import CHECKS, check_model
from longvis_bench.registry import Registry


@pytest.fixture(scope="module")
def results():
    variant = Registry([Path(__file__).parent.parent]).find("{name}")
    return check_model(variant)


@pytest.mark.parametrize("number", range(len(CHECKS)))
def test_keeps_the_adapter_contract(results, number):
    assert results[number].passed, results[number].detail
'''


def write_model(name: str, working_dir: Path | None = None) -> Path:
    """Write a new model's folder below `models/` of the working directory.

    Arguments:
        name: lower-case letters, digits and underscores; an importable module name.
        working_dir: the current directory where not given.

    Returns:
        The folder.

    Raises:
        LongvisError: the name cannot be one, is taken, or the folder cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise LongvisError(
            f"{name!r} cannot be a model's name: use lower-case letters, digits and underscores."
        )
    root = working_dir or Path.cwd()
    folder = root / "models" / name
    registry = Registry(working_dir=root)
    families = {found.card.family for found in registry.cards}
    if name in families or name in registry.names() or folder.exists():
        raise CardError(f"{name!r} is taken already; choose another name.")
    try:
        folder.mkdir(parents=True)
        (folder / "card.toml").write_text(_CARD.format(name=name), encoding="utf-8")
        (folder / f"{name}.py").write_text(_MODEL.format(name=name), encoding="utf-8")
        (folder / f"test_{name}.py").write_text(_TEST.format(name=name), encoding="utf-8")
    except OSError as error:
        raise LongvisError(f"cannot write {folder}: {error.strerror or error}.") from error
    return folder
