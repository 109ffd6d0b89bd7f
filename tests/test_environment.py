"""What is recorded of the machine, and that nothing in it names a person."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longvis_bench import environment
from longvis_bench.environment import read_environment, read_flags
from longvis_bench.errors import RunDirectoryError
from longvis_bench.runs.directory import check_environment


@pytest.mark.parametrize(
    "name",
    [
        *("PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
        *("CUDA_DEVICE_MAX_CONNECTIONS", "TIMM_FUSED_ATTN", "TRITON_DEFAULT_FP_FUSION"),
        *("TORCHINDUCTOR_MAX_AUTOTUNE", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "OMP_WAIT_POLICY"),
    ],
)
def test_variables_that_change_a_number_are_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_environment()
    monkeypatch.setenv(name, "1")
    after = read_environment()
    assert after.flags[name] == "1"
    assert after.hash != before.hash


def test_paths_are_cut_to_file_names() -> None:
    variables = {
        "LD_PRELOAD": "/home/ann/lib/libjemalloc.so.2:/opt/x/libtcmalloc.so",
        "TRITON_CACHE_DIR": "/home/ann/.triton",
        "TORCHINDUCTOR_CACHE_DIR": "/home/ann/cache",
        "HOME": "/home/ann",
    }
    assert read_flags(variables) == {"LD_PRELOAD": "libjemalloc.so.2:libtcmalloc.so"}


def test_torch_is_recorded_with_its_build() -> None:
    versions = read_environment().versions
    assert versions["torch"] == str(torch.__version__)
    assert versions.get("cuda") == torch.version.cuda


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    lines = (
        "vendor_id : GenuineIntel\ncpu family : 6\nmodel : 167\nmodel name : Xeon @ 2.60GHz\nstepping : 1\n"
    )
    (tmp_path / "cpuinfo").write_text(lines + "\n" + lines.replace("167", "9"))
    found = environment.cpu_details(tmp_path / "cpuinfo")
    assert (found["family"], found["model"]) == ("6", "167")
    assert found["stepping"] == "1"
    assert environment.cpu_details(tmp_path / "none") == {}


def test_an_older_run_is_continued_on_the_same_machine(tmp_path: Path) -> None:
    """Runs of before hold no details of processor, GPUs and CUDA, and torch's version without its build."""
    here = read_environment()
    older = here.model_dump(mode="json", exclude={"cpu", "gpus"})
    versions = older["versions"]
    older["versions"] = {
        n: v.partition("+")[0] for n, v in versions.items() if n != "cuda" and "nvidia" not in n
    }
    check_environment(tmp_path, {"environment": older}, here)
    older["processor"] = "another"
    with pytest.raises(RunDirectoryError, match="processor"):
        check_environment(tmp_path, {"environment": older}, here)
