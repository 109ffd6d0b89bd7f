"""Folders of the store are not hidden, whatever the model's name begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from longvis_bench.weights.store import weights_folder


@pytest.mark.parametrize("name", ["../net.py:build", "../../net.py:build", ".hidden/net.py:build", ".."])
def test_a_folder_of_the_store_begins_with_no_dot(name: str) -> None:
    folder = weights_folder(name, Path("store"))
    assert folder.parent == Path("store")
    assert not folder.name.startswith(".")
