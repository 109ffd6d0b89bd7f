"""Weight files: hostile and damaged ones, foreign layouts, sizes and heads that differ, round trips."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pickle
import re
import zipfile
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longvis_bench.data.protocol import open_data
from longvis_bench.errors import CheckpointError
from longvis_bench.hashing import sha256_file
from longvis_bench.measure.accuracy import Accuracy, measure_accuracy
from longvis_bench.registry.card import WeightsEntry
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.training.recipe import RECIPES
from longvis_bench.weights.matching import MOST_LISTED, load_weights, match_weights
from longvis_bench.weights.reading import read_tensors
from longvis_bench.weights.store import read_metadata, save_weights, store_weights


def case(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)


class Tiny(nn.Module):
    """A stem, a position table with a class token, a norm and a head."""

    def __init__(self, grid: int = 4, classes: int = 10, dim: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2)
        self.norm = nn.BatchNorm2d(dim)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, dim))
        self.head = nn.Linear(dim, classes)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Reading


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_what_training_scripts_save(tmp_path: Path, wrap: str, prefix: str) -> None:
    tensors = {"a.weight": torch.randn(2, 3), "b": torch.tensor(7)}
    content: dict[str, Any] = {prefix + name: value for name, value in tensors.items()}
    if wrap:
        rest = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(81.2), "epoch": 3}
        content = {wrap: content, **rest}
    torch.save(content, tmp_path / "model.pth.tar")
    assert _same(read_tensors(tmp_path / "model.pth.tar"), tensors)


def test_legacy_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert _same(read_tensors(tmp_path / "old.pth"), {"a": torch.ones(2)})


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "misnamed.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "misnamed.safetensors")
    assert _same(read_tensors(tmp_path / "misnamed.pth"), read_tensors(tmp_path / "misnamed.safetensors"))


class Malicious:
    """Makes a file when it is unpickled by anything that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    target, file = tmp_path / "owned", tmp_path / "model.pth"
    content = {"state_dict": {"a": torch.ones(1)}, "args": Malicious(target)}
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"unsafe"):
        read_tensors(file)
    assert not target.exists()


def test_malicious_pickle_would_have_run(tmp_path: Path) -> None:
    """Proves that the test above can fail."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


def test_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/data/0", b"\0" * (64 << 20))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"unsafe: .* KiB on the disk would unpack to 64.0 MiB"):
        read_tensors(bomb)


def _safetensors(path: Path) -> bytes:
    save_file({"a": torch.arange(1000.0), "b": torch.ones(5)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("keep", [20, 100, 200, -1])
def test_truncated_safetensors_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(_safetensors(file)[:keep])
    with pytest.raises(CheckpointError, match=r"cut.safetensors is a damaged or truncated"):
        read_tensors(file)


@pytest.mark.parametrize("keep", [4, 100, 0.5, -10])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_file_is_refused(tmp_path: Path, keep: float, zipped: bool) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"a": torch.arange(1000.0)}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(CheckpointError, match=r"cut.pth is a damaged"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no weight file"),
        (b"<!DOCTYPE html><html>", "is no weight file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is no weight file"),
        (b"\xff" * 8 + b"{" + b"x" * 50, "damaged"),
        (b"PK\x03\x04" + b"x" * 50, "damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        read_tensors(tmp_path / "page")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [([1, 2], "no state dict but a list"), ({"epoch": 3}, "no tensors"), (torch.ones(2), "but a Tensor")],
)
def test_file_without_a_state_dict_is_refused(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=sentence):
        read_tensors(tmp_path / "other.pth")


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*absent.pth: No such file"):
        read_tensors(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"cannot read the weights"):
        read_tensors(tmp_path)


# Loading


def test_loading_names_what_it_did() -> None:
    source, target = Tiny(), Tiny()
    report = load_weights(target, {**source.state_dict(), "extra": torch.ones(1)})
    assert _same(dict(source.state_dict()), dict(target.state_dict()))
    assert set(report.loaded) == set(source.state_dict())
    assert (report.unused, report.missing, report.reshaped, report.random) == (("extra",), (), {}, ())


def test_wrong_head_stays_fresh_and_is_named() -> None:
    source, target = Tiny(classes=1000), Tiny(classes=10)
    before = target.head.weight.detach().clone()
    report = load_weights(target, source.state_dict())
    assert torch.equal(target.head.weight, before)
    assert torch.equal(target.stem.weight, source.stem.weight)
    assert report.random == ("head.weight", "head.bias")
    assert report.reshaped["head.bias"] == "left fresh: 1000 classes in the file, 10 in the model"


def test_position_table_is_interpolated_and_class_token_kept() -> None:
    source, target = Tiny(grid=4), Tiny(grid=8)
    ramp = torch.linspace(0, 1, 4)[:, None].expand(4, 4)
    with torch.no_grad():
        source.pos_embed[:, 1:] = ramp.reshape(1, 16, 1)
    report = load_weights(target, source.state_dict())
    table = target.pos_embed.detach()
    assert torch.equal(table[:, 0], source.pos_embed[:, 0])
    grid = table[0, 1:].reshape(8, 8, 8)
    assert torch.allclose(grid[:, 0], grid[:, 5], atol=1e-6)
    assert bool((grid[1:] > grid[:-1]).all())
    assert report.reshaped == {"pos_embed": "interpolated (bicubic) from 1x17x8 to 1x65x8"}
    assert report.random == ()


def test_swin_table_is_interpolated() -> None:
    class Block(nn.Module):
        def __init__(self, window: int) -> None:
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, 2))

    source, target = Block(7), Block(8)
    with torch.no_grad():
        source.relative_position_bias_table[:, 1] = 3.0
    report = load_weights(target, source.state_dict())
    table = target.relative_position_bias_table
    assert torch.allclose(table, torch.tensor([0.0, 3.0]).expand(225, 2))
    assert list(report.reshaped) == ["relative_position_bias_table"]


def test_missing_tensors_are_an_error_with_at_most_five_names() -> None:
    target = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = nn.Sequential(nn.Linear(2, 2)).state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, state)
    assert str(caught.value).startswith("the mapping lacks 6 tensors of this Sequential: 1.weight, 1.bias")
    assert "3.weight and 1 more;" in str(caught.value)
    assert _same(before, dict(target.state_dict()))
    report = load_weights(target, state, strict=False)
    assert report.missing == ("1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias")
    assert report.random == ()
    assert torch.equal(target.state_dict()["0.weight"], state["0.weight"])


def test_another_variant_is_refused_with_both_shapes() -> None:
    target = Tiny(dim=8)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"another variant or size: .*stem.weight \(16x3x2x2, not 8x3x2x2\)"
    ):
        load_weights(target, Tiny(dim=16).state_dict(), strict=False)
    assert _same(before, dict(target.state_dict()))


def test_another_model_with_a_shape_in_common_lacks_tensors() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(
        CheckpointError, match=r"lacks 3 tensors of this Sequential: 0.bias, 1.weight, 1.bias;"
    ):
        load_weights(target, {"0.weight": torch.ones(3, 5)})


def test_nothing_in_common_is_an_error_even_when_not_strict() -> None:
    with pytest.raises(CheckpointError, match="lacks 2 tensors of this Linear"):
        load_weights(nn.Linear(2, 2), {"other": torch.ones(1)}, strict=False)


def test_batch_counter_of_an_old_file_is_not_missed() -> None:
    state = Tiny().state_dict()
    del state["norm.num_batches_tracked"]
    assert load_weights(Tiny(), state).missing == ()


# Official layouts


GOLDEN = Path(__file__).parents[1] / "golden"


def _golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an official model's golden vector, expected logits left out."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("expected.")}  # noqa: SIM118
    return config, tensors


def _native(config: dict[str, Any], **changes: Any) -> nn.Module:
    from longvis_bench.backbones import atlas, longvit, mambavision

    classes: dict[str, type[nn.Module]] = {
        "atlas": atlas.Atlas,
        "longvit": longvit.LongViT,
        "mambavision": mambavision.MambaVision,
    }
    native = classes[config["family"]]
    known = {*inspect.signature(native).parameters} & {*config}
    return native(**{key: config[key] for key in known} | changes)


@pytest.mark.parametrize("name", ["atlas_2scale_w4_256px", "mambavision_224px", "longvit_h12_p32_1024px"])
def test_official_layouts_load_and_unused_tensors_are_named(name: str, tmp_path: Path) -> None:
    config, tensors = _golden(name)
    model = _native(config)
    report = load_weights(model, tensors)
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    assert set(report.unused) <= set(tensors)
    assert len(report.unused) + len(report.loaded) == len(tensors)
    wrapped = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"state_dict": wrapped, "args": argparse.Namespace(model=name)}, tmp_path / "official.pth.tar")
    other = _native(config)
    assert load_weights(other, tmp_path / "official.pth.tar") == report
    assert _same(dict(model.state_dict()), dict(other.state_dict()))


OFFICIAL = {
    "atlas": "atlas_2scale_w4_256px",
    "longvit": "longvit_h12_p32_1024px",
    "mambavision": "mambavision_224px",
}


WRAPPED = [
    ("", "", "model.pth"),
    ("state_dict", "module.", "model.pth.tar"),
    ("state_dict", "module.encoder.", "model.pth.tar"),
    ("model", "encoder.", "model.pth"),
    ("model", "model.", "latest.ckpt"),
    ("teacher", "module.backbone.", "model.pth"),
]


@pytest.mark.parametrize(("key", "prefix", "file"), WRAPPED)
@pytest.mark.parametrize("family", OFFICIAL)
def test_every_wrapping_of_an_official_checkpoint_loads(
    tmp_path: Path, family: str, key: str, prefix: str, file: str
) -> None:
    config, tensors = _golden(OFFICIAL[family])
    names = {prefix + name: value for name, value in tensors.items()}
    rest = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(81.2), "epoch": np.int64(3)}
    torch.save({key: names, **rest} if key else names, tmp_path / file)
    model = _native(config)
    report = load_weights(model, tmp_path / file)
    assert set(report.loaded) == set(model.state_dict())
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    renamed = import_module(f"longvis_bench.backbones.{family}").checkpoint_filter_fn(tensors)
    assert _same({name: renamed[name] for name in model.state_dict()}, dict(model.state_dict()))


@pytest.mark.parametrize("family", OFFICIAL)
def test_official_head_positions_and_strangers_are_said(family: str) -> None:
    config, tensors = _golden(OFFICIAL[family])
    model = _native(config, num_classes=7)
    wrapped = {f"module.encoder.{name}": value for name, value in tensors.items()}
    report = load_weights(model, {**wrapped, "module.decoder.weight": torch.ones(2)})
    assert report.random == ("head.weight", "head.bias")
    assert report.reshaped["head.weight"] == "left fresh: 10 classes in the file, 7 in the model"
    assert "decoder.weight" in report.unused
    first = next(name for name in tensors if name.endswith("stem.0.weight") or "patch_embed" in name)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor of this \w+: (stem|patch_embed|pos_embed)"):
        load_weights(model, {name: value for name, value in tensors.items() if name != first})


@pytest.mark.parametrize("prefix", ["", "module.encoder."])
@pytest.mark.parametrize(("other", "family"), [*permutations(OFFICIAL, 2)])
def test_official_checkpoint_of_another_family_is_named(other: str, family: str, prefix: str) -> None:
    tensors = {prefix + name: value for name, value in _golden(OFFICIAL[other])[1].items()}
    model = _native(_golden(OFFICIAL[family])[0])
    with pytest.raises(
        CheckpointError,
        match=f"^the mapping is an official {other} checkpoint; the model is of another family, \\w+. The m",
    ):
        load_weights(model, tensors)


def test_derived_buffers_are_asked_for_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a tensor: 0.75 s for fastervit-4, at each size planned and in each cell."""
    pytest.importorskip("fastervit")
    from longvis_bench.backbones import fastervit_upstream

    asked: list[nn.Module] = []

    def derived(model: nn.Module) -> set[str]:
        asked.append(model)
        return set()

    monkeypatch.setattr(fastervit_upstream, "derived_buffers", derived)
    with torch.device("meta"):
        model = Registry().find("fastervit-n@upstream").build(resolution=64, num_classes=10)
    load_weights(model, dict(model.state_dict()))
    assert asked == [model]


def test_a_buffer_of_another_model_is_not_derived() -> None:
    model = Tiny()
    model.register_buffer("relative_bias", torch.ones(1))
    report = load_weights(model, Tiny().state_dict(), strict=False)
    assert report.missing == ("relative_bias",)


# Layouts that timm knows, wrapped names, deeper variants


def _as_facebook(name: str) -> str:
    """timm's name of a ConvNeXt tensor as its authors have it."""
    for pattern, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.fc\.", "head."),
        (r"^head\.norm\.", "norm."),
    ):
        name = re.sub(pattern, theirs, name)
    return name


def test_layouts_that_timm_knows_load(tmp_path: Path) -> None:
    source = Registry().find("convnext-n").build(resolution=64, num_classes=10)
    theirs = {_as_facebook(name): value for name, value in source.state_dict().items()}
    assert not theirs.keys() & source.state_dict().keys() - {"head.weight"}
    torch.save({"model": theirs}, tmp_path / "convnext_nano_1k_224_ema.pth")
    target = Registry().find("convnext-n").build(resolution=64, num_classes=10)
    report = load_weights(target, tmp_path / "convnext_nano_1k_224_ema.pth")
    assert (report.missing, report.random, report.reshaped, report.unused) == ((), (), {}, ())
    assert _same(dict(source.state_dict()), dict(target.state_dict()))


def test_old_swin_layout_loads_and_its_tables_are_said_to_be_interpolated() -> None:
    find = Registry().find("swin-n[window_size=4]"), Registry().find("swin-n[window_size=8]")
    source, target = (variant.build(resolution=256, num_classes=10) for variant in find)
    theirs = {}
    for name, value in source.state_dict().items():
        moved = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        theirs[moved.replace("head.fc.", "head.")] = value
    report = load_weights(target, theirs)
    tables = {name for name in target.state_dict() if name.endswith("relative_position_bias_table")}
    assert (report.missing, report.random, set(report.reshaped)) == ((), (), tables)
    assert set(report.reshaped.values()) == {"interpolated (bicubic) from 49x1 to 225x1"} or tables
    for name, value in source.state_dict().items():
        if name not in tables:
            assert torch.equal(target.state_dict()[name], value), name


@pytest.mark.parametrize("prefix", ["model.", "module.encoder.", "backbone."])
def test_wrapped_names_of_any_model_load(prefix: str) -> None:
    source, target = Tiny(), Tiny()
    wrapped = {prefix + name: value for name, value in source.state_dict().items()}
    report = load_weights(target, {**wrapped, "decoder.weight": torch.ones(1)})
    assert _same(dict(source.state_dict()), dict(target.state_dict()))
    assert report.unused == ("decoder.weight",)


def test_weights_of_a_deeper_variant_are_refused() -> None:
    deep = Registry().find("convnext-n[depths=(1,1,5,1)]").build(resolution=64, num_classes=10)
    with pytest.raises(CheckpointError) as refused:
        load_weights(Registry().find("convnext-n").build(resolution=64, num_classes=10), deep.state_dict())
    said = str(refused.value)
    assert said.startswith("the mapping holds weights of another variant: 18 more tensors than this ConvNeXt")
    listed, _, sides = said.partition(" and 13 more. ")
    assert len(re.findall(r"stages\.2\.blocks\.\d", listed)) == MOST_LISTED
    assert sides.startswith("The model's names are like ")


def test_matching_changes_nothing_and_says_the_same() -> None:
    source, target = Tiny(grid=4, classes=7), Tiny(grid=8)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = match_weights(target, source.state_dict(), "w")
    assert _same(before, dict(target.state_dict()))
    with torch.device("meta"):
        assert match_weights(Tiny(grid=8), source.state_dict(), "w") == report
    assert load_weights(target, source.state_dict()) == report


class Stranger:
    """A harmless class of a training script; still not on the list."""


@pytest.mark.parametrize("content", [Stranger(), Stranger, np.zeros(3), torch.nn.Linear(2, 2)], ids=case)
def test_no_other_class_is_let_in(tmp_path: Path, content: object) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": content}, tmp_path / "model.pth.tar")
    with pytest.raises(CheckpointError, match="unsafe"):
        read_tensors(tmp_path / "model.pth.tar")


def test_longvit_positions_are_interpolated_to_a_larger_image() -> None:
    config, tensors = _golden("longvit_h12_p32_1024px")
    report = load_weights(_native(config, resolution=2048), tensors)
    assert report.reshaped == {"pos_embed": "interpolated (bicubic) from 1x1024x48 to 1x4096x48"}


# Saving


def test_round_trip_is_fp16_and_leaves_counters_alone(tmp_path: Path) -> None:
    model, other = Tiny(), Tiny()
    assert model.norm.num_batches_tracked is not None
    model.norm.num_batches_tracked.add_(70_000)
    save_weights(model, tmp_path / "deep" / "w.safetensors", {"variant": "tiny", "epochs": 3})
    stored = load_file(tmp_path / "deep" / "w.safetensors")
    assert stored["stem.weight"].dtype == torch.float16
    load_weights(other, tmp_path / "deep" / "w.safetensors")
    for name, value in model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(other.state_dict()[name], expected), name
    assert read_metadata(tmp_path / "deep" / "w.safetensors") == {"variant": "tiny", "epochs": 3}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


def test_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    model = Tiny()
    for name in ("a", "b"):
        save_weights(model, tmp_path / name, {"seed": 0, "variant": "tiny", "dataset": "digits"})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_tied_and_sliced_tensors_are_saved(tmp_path: Path) -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    first.bias = nn.Parameter(torch.randn(8)[::2])
    save_weights(nn.Sequential(first, second), tmp_path / "w", {})
    assert torch.equal(load_file(tmp_path / "w")["1.weight"], first.weight.half())


def test_value_beyond_fp16_stays_fp32(tmp_path: Path) -> None:
    model = nn.BatchNorm2d(2)
    model.running_var = torch.tensor([1e6, 1.0])
    save_weights(model, tmp_path / "w", {})
    assert load_file(tmp_path / "w")["running_var"].tolist() == [1e6, 1.0]


def test_values_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="weight holds values that are not finite"):
        save_weights(model, tmp_path / "w", {})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "w", {})
    before = (tmp_path / "w").read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        save_weights(nn.Linear(2, 2), tmp_path / "w", {})
    assert (tmp_path / "w").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_store_names_files_by_what_they_are(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    path = store_weights(
        model, variant="timm:a/b", dataset="digits", resolution=256, facts={"seed": 1}, store=tmp_path
    )
    sha256 = sha256_file(path)
    assert path == tmp_path / "timm_a_b" / f"digits-256-{sha256[:8]}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    assert card == {
        "variant": "timm:a/b",
        "dataset": "digits",
        "resolution": 256,
        "seed": 1,
        "file": path.name,
        "sha256": sha256,
    }
    load_weights(nn.Linear(2, 2), path)


# Weights that ship


SHIPPED = [
    (variant, entry)
    for card in Registry((), Path("/nonexistent")).cards
    for entry in card.card.weights
    if entry.file is not None and (variant := Registry((), Path("/nonexistent")).find(entry.variant))
]
NAMES = [entry.file for _, entry in SHIPPED]


def _measure(variant: Variant, entry: WeightsEntry, images: int | None) -> Accuracy:
    assert entry.file is not None
    model = variant.build(resolution=entry.resolution, num_classes=entry.num_classes)
    report = load_weights(model, variant.folder / entry.file)
    assert (report.missing, report.random, report.reshaped) == ((), (), {})
    held = read_tensors(variant.folder / entry.file)
    for name in report.unused:  # held twice, under two names
        assert any(torch.equal(held[name], held[loaded]) for loaded in report.loaded)
    data = open_data(entry.dataset)
    return measure_accuracy(model, data, resolution=entry.resolution, images=images, batch_size=16)


TRAINED = {
    ("digits", 256): ("quick", 10),
    ("digits", 512): ("tune", 4),
    ("digits", 1024): ("tune", 2),
    ("pairs", 512): ("quick", 10),
}
"""Data set and size -> recipe and epochs, the same for every family, as README.md says."""


def test_what_ships_was_trained_alike_for_every_family() -> None:
    nano = {card.card.nano for card in Registry((), Path("/nonexistent")).cards if card.card.tour}
    shipped = {
        (entry.variant, entry.dataset, entry.resolution, entry.recipe, entry.epochs, entry.seed)
        for _, entry in SHIPPED
    }
    assert shipped == {(name, *place, *how, 0) for name in nano for place, how in TRAINED.items()}


def test_weights_that_ship_are_under_32_mib_together() -> None:
    files = [variant.folder / entry.file for variant, entry in SHIPPED if entry.file is not None]
    assert sum(path.stat().st_size for path in files) < 32 << 20


@pytest.mark.parametrize(("variant", "entry"), SHIPPED, ids=NAMES)
def test_shipped_files_are_those_of_the_card(variant: Variant, entry: WeightsEntry) -> None:
    assert entry.file is not None
    assert sha256_file(variant.folder / entry.file) == entry.sha256
    assert entry.recipe in RECIPES
    metadata = {"variant": entry.variant, "dataset": entry.dataset, "resolution": entry.resolution}
    assert read_metadata(variant.folder / entry.file) == metadata
    assert all(value.dtype != torch.float32 for value in read_tensors(variant.folder / entry.file).values())


@pytest.mark.parametrize(
    ("variant", "entry"),
    [
        pytest.param(
            *shipped,
            id=shipped[1].file,
            marks=[] if (shipped[1].dataset, shipped[1].resolution) == ("digits", 256) else pytest.mark.slow,
        )
        for shipped in SHIPPED
    ],
)
def test_shipped_weights_know_their_data(variant: Variant, entry: WeightsEntry) -> None:
    """On a few images; one size of each model by default, and all images of all in `make deep`."""
    accuracy = _measure(variant, entry, 48 if entry.resolution <= 512 else 24)
    assert entry.top1 is not None
    spread = (entry.top1 * (1 - entry.top1) * accuracy.images) ** 0.5
    assert abs(accuracy.correct_top1 - entry.top1 * accuracy.images) < 4 * spread
    if entry.dataset == "digits":
        assert accuracy.top1 > 0.3  # chance is 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "entry"), SHIPPED, ids=NAMES)
def test_stated_accuracy_is_measured_again(variant: Variant, entry: WeightsEntry) -> None:
    accuracy = _measure(variant, entry, None)
    assert accuracy.images == entry.images == open_data(entry.dataset).size("val")
    assert entry.top1 is not None
    expected = entry.top1 * accuracy.images
    assert abs(accuracy.correct_top1 - expected) < 0.01 * accuracy.images  # other processors round otherwise
