"""Arguments of the native families that do not fit together: one sentence that says what would."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from typer.testing import CliRunner

from longvis_bench.cli.app import app
from longvis_bench.errors import IllegalArgument
from longvis_bench.registry.registry import Registry

CLASSES = {"atlas-n": "Atlas", "longvit-n": "LongViT", "mambavision-n": "MambaVision"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "atlas-n",
        {"heads": 5},
        "heads must divide the width of 32, which 5 does not; 1, 2, 4, 8, 16 and 32 do",
    ),
    ("atlas-n", {"heads": 0}, "heads must be a positive whole number, not 0"),
    ("atlas-n", {"heads": "two"}, "heads must be a positive whole number, not 'two'"),
    ("atlas-n", {"stem_dim": 5}, "a quarter of the width of 32, that is 8, not 5"),
    ("atlas-n", {"stride": 3}, "divide the window of 16 (2, 4, 8 and 16), not 3"),
    ("atlas-n", {"window": 1}, "none does: a window"),
    ("atlas-n", {"window": 0}, "window must be a positive whole number"),
    ("atlas-n", {"depths": (1,)}, "need 2 scales, so depths needs as many positive numbers, not [1]"),
    ("atlas-n", {"window_order": "spiral"}, 'window_order must be "position" or "official", not \'spiral\''),
    ("atlas-n", {"drop_path": 2}, "drop_path must be at least 0 and below 1, not 2"),
    ("longvit-n", {"num_heads": 7}, "the width of 64, which 7 does not; 1, 2, 4, 8, 16, 32 and 64 do"),
    ("longvit-n", {"segment_length": (64, 128)}, "not 2 and 5: give 5 segment lengths or 2 ratios"),
    ("longvit-n", {"dilated_ratio": (1, 2)}, "not 5 and 2: give 2 segment lengths or 5 ratios"),
    ("longvit-n", {"segment_length": ()}, "segment_length must be a list of positive whole numbers"),
    ("longvit-n", {"dilated_ratio": (1, 2, 4, 8, 0)}, "dilated_ratio must hold positive whole numbers only"),
    ("longvit-n", {"patch_size": 0}, "patch_size must be a positive whole number"),
    ("longvit-n", {"mask_padding": "yes"}, "mask_padding must be True or False"),
    (
        "mambavision-n",
        {"num_heads": (1, 1, 5, 4)},
        "stage 3 must divide its width of 48, which 5 does not; 1, 2",
    ),
    ("mambavision-n", {"depths": (1, 1, 3)}, "depths of four positive numbers, one per stage"),
    ("mambavision-n", {"window_size": 8}, "window_size must be a list of positive whole numbers like (8, 8"),
    ("mambavision-n", {"window_size": (8, 8, 0, 7)}, "window_size must hold positive whole numbers only"),
    ("mambavision-n", {"mlp_ratio": 0}, "mlp_ratio must be a positive number"),
    ("mambavision-n", {"layer_scale": "small"}, "layer_scale must be a number or None"),
]


def case(value: object) -> str:
    return str(value)[:40]


@pytest.mark.parametrize(("variant", "change", "words"), BAD, ids=case)
def test_the_class_says_what_would_be_legal(variant: str, change: dict[str, Any], words: str) -> None:
    family = variant.removesuffix("-n")
    arguments = {**Registry().find(variant).arguments, "resolution": 512, "num_classes": 2}
    rest: dict[str, dict[str, Any]] = {
        "atlas": {"depths": (2, 10), "window": 16, "stride": 4},
        "longvit": {"segment_length": (64, 128, 256, 512, 1024), "dilated_ratio": (1, 2, 4, 8, 16)},
        "mambavision": {"layer_scale": None},
    }
    arguments |= rest[family]
    native = getattr(import_module(f"longvis_bench.backbones.{family}"), CLASSES[variant])
    native(**arguments)
    with pytest.raises(IllegalArgument) as caught:
        native(**{**arguments, **change})
    assert isinstance(caught.value, ValueError)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(("variant", "change", "words"), BAD, ids=case)
def test_the_command_says_so_before_anything_runs(variant: str, change: dict[str, Any], words: str) -> None:
    inside = ",".join(f"{key}={value}" for key, value in change.items())
    result = CliRunner().invoke(app, ["bench", "--models", f"{variant}[{inside}]", "--res", "512"])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize("resolution", [1, 15])
def test_a_resolution_below_one_token_names_the_least(variant: str, resolution: int) -> None:
    least = {"atlas-n": 16, "longvit-n": 32, "mambavision-n": 32}[variant]
    result = CliRunner().invoke(app, ["bench", "--models", variant, "--res", str(resolution)])
    assert result.exit_code == 2
    assert f"{resolution} px is not a legal size" in result.stderr
    assert f"legal sizes near it: {least}" in result.stderr


def test_windows_that_do_not_divide_the_grid_name_sizes_that_do() -> None:
    result = CliRunner().invoke(app, ["bench", "--models", "atlas-n", "--res", "1000"])
    assert result.exit_code == 2
    assert (
        "divide into windows of 16 tokens of 16 px; legal sizes near it: 512, 768, 1024, 2048"
        in result.stderr
    )


def test_unknown_arguments_stay_the_registry_s_matter() -> None:
    result = CliRunner().invoke(app, ["bench", "--models", "atlas-n[wndow=8]", "--res", "512"])
    assert result.exit_code == 2
    assert "did you mean window" in result.stderr
