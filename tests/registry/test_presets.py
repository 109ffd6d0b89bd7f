"""Published tables as presets: their cells, and bad names."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.errors import UnknownName
from longvis_bench.registry.presets import find_preset, presets
from longvis_bench.registry.registry import Registry
from longvis_bench.sweep.config import SweepConfig, read_config
from longvis_bench.sweep.session import start

ATLAS_TABLE_1 = {"atlas-b", "convnext-b", "fastervit-4", "longvit-b", "mambavision-b", "swin-b", "vit-b"}


def longvis(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, " ".join(result.output.split())


def test_a_table_that_is_a_grid() -> None:
    preset = find_preset(Registry(), "atlas-table1")
    assert preset.cells == {(model, 1024) for model in ATLAS_TABLE_1}
    assert preset.modes == ("train",)
    assert preset.batch_sizes == ()
    assert preset.source == "arXiv:2503.12355, Table 1"


def test_a_table_that_is_no_grid_has_its_own_cells_only() -> None:
    """ConvNeXt-T and -S stand in Table 12 at 224 px alone."""
    preset = find_preset(Registry(), "convnext-table12")
    small = {(f"{family}-{size}", 224) for family in ("convnext", "swin") for size in "tsbl"}
    assert preset.cells == small | {(name, 384) for name, _ in small if name[-1] in "bl"}
    assert preset.modes == ("infer",)
    plan = start({"preset": "convnext-table12", "device": "cpu"}).plan
    assert {(cell.cell.model, cell.cell.resolution) for cell in plan.cells} == preset.cells


def test_a_version_of_a_paper_is_the_paper_and_its_batch_is_taken() -> None:
    preset = presets(Registry())["mambavision-table1"]
    assert preset.entries[0].source == "arXiv:2407.08083v2"
    assert preset.batch_sizes == (128,)


def test_every_preset_plans() -> None:
    registry = Registry()
    assert len(presets(registry)) >= 8
    for name, preset in presets(registry).items():
        config = SweepConfig(preset=name, device="cpu").resolve(registry)
        assert set(config.models) == {model for model, _ in preset.cells}, name
        assert set(config.resolutions) == {size for _, size in preset.cells}, name


def test_what_is_given_narrows_the_table() -> None:
    given = {"preset": "atlas-table6", "models": ("vit-*",), "resolutions": (256, 512), "modes": ("infer",)}
    plan = start({**given, "device": "cpu"}).plan
    assert [(c.cell.model, c.cell.resolution, c.cell.mode) for c in plan.cells] == [
        ("vit-b", 256, "infer"),
        ("vit-b", 512, "infer"),
    ]


def test_modes_of_the_table_hold_where_models_and_sizes_are_given() -> None:
    given = {"preset": "atlas-table6", "models": ("vit-b",), "resolutions": (256,), "device": "cpu"}
    assert read_config(given).resolve(Registry()).modes == ("train",)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "atlas-tabel1"], "unknown preset 'atlas-tabel1': did you mean"),
        (["--preset", "atlas-table1", "--models", "vit-s"], "unknown model of atlas-table1 'vit-s'"),
        (
            ["--preset", "atlas-table1", "--res", "512"],
            "atlas-table1 has no cell at 512 px; its sizes are 1024 px.",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str) -> None:
    code, output = longvis("bench", "--device", "cpu", "--dry-run", *arguments)
    assert code == 2
    assert said in output
    assert "Traceback" not in output


def test_a_wrong_name_without_near_misses_lists_all() -> None:
    with pytest.raises(UnknownName, match=r"known: .*atlas-table1"):
        find_preset(Registry(), "zzzz")


def test_runs_without_a_preset_keep_their_names() -> None:
    config = SweepConfig(models=("vit-n",), resolutions=(64,), device="cpu").resolve(Registry())
    assert config.name.startswith("vit-n-64-")
    assert config.name != config.model_copy(update={"preset": "atlas-table1"}).name


def test_a_preset_is_replayed_from_a_file(tmp_path: Path) -> None:
    code, _ = longvis("bench", "--preset", "atlas-table2", "--save-config", str(tmp_path / "c.toml"))
    assert code == 0
    code, output = longvis("bench", "--config", str(tmp_path / "c.toml"), "--device", "cpu", "--dry-run")
    assert code == 0
    assert "6 cells" in output
