"""The Python interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import longvis_bench as lv
from longvis_bench.errors import CheckpointError, LongvisError, UnknownName

FAMILIES = Path(__file__).parent / "families"


def test_bench_gives_a_frame_and_load_results_the_same() -> None:
    frame = lv.bench(
        ["moody-fine"],
        [64, 72],
        out="run",
        models_dirs=[FAMILIES],
        device="cpu",
        budget_s=0.1,
        repeats=1,
        threads=1,
    )
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.status) == ["ok", "illegal_size"]
    assert frame.throughput_img_s[0] > 0
    assert pd.isna(frame.throughput_img_s[1])
    stored = lv.load_results("run")
    pd.testing.assert_frame_equal(frame, stored)


UNGUARDED = """
import longvis_bench as lv
quick = dict(device="cpu", budget_s=0.1, repeats=1, threads=1)
frame = lv.bench(["moody-fine"], [64], models_dirs=[{families!r}], **quick)
print(frame.status[0])
"""


@pytest.mark.parametrize(
    "how",
    [
        "script",
        pytest.param("standard input", marks=pytest.mark.slow),
        pytest.param("notebook", marks=pytest.mark.slow),
    ],
)
def test_bench_works_without_a_main_guard(how: str, tmp_path: Path) -> None:
    program = UNGUARDED.format(families=str(FAMILIES))
    (tmp_path / "program.py").write_text(program)
    # A notebook executes its cells in a module without a file, in a process that imported much before.
    cell = "import asyncio, threading; exec(open('program.py').read(), {'__name__': '__main__'})"
    arguments = {"script": ["program.py"], "standard input": ["-"], "notebook": ["-c", cell]}
    command = [sys.executable, *arguments[how]]
    environment = {**os.environ, "PYTHONPATH": str(FAMILIES.parent.parent)}
    done = subprocess.run(
        command, input=program, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.stdout == "ok\n", done.stderr


def test_bench_refuses_what_cannot_be() -> None:
    with pytest.raises(UnknownName, match="did you mean"):
        lv.bench(["atlas-q"], [256])
    with pytest.raises(LongvisError, match="batch_sizes"):
        lv.bench(["vit-n"], [256], batch_sizes=["many"])


def test_build_count_and_list() -> None:
    model = lv.build("vit-n", resolution=64, num_classes=7)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    counted = lv.count(model, resolution=64)
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.flops == 2 * counted.macs > 0
    assert {"atlas-s", "mambavision-s@upstream"} <= set(lv.list_models())


def test_count_of_a_model_on_meta() -> None:
    with torch.device("meta"):
        model = lv.build("convnext-t", resolution=4096, num_classes=10)
    assert lv.count(model, 4096).macs > 1e12


def test_load_weights_from_a_mapping_and_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = lv.build("vit-n", resolution=64, num_classes=7)
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    report = lv.load_weights(model, state)
    assert not report.missing
    assert all((tensor == 0.5).all() for tensor in model.state_dict().values())
    save_file(state, tmp_path / "w.safetensors")
    assert set(lv.load_weights(model, str(tmp_path / "w.safetensors")).loaded) == set(state)
    del state["head.bias"]
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        lv.load_weights(model, state)
    assert lv.load_weights(model, state, strict=False).missing == ("head.bias",)
