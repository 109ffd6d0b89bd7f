"""Sets of weights in a file, indexes of shards, folders of `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longvis_bench.errors import CheckpointError
from longvis_bench.weights.files import find_file, sha256_weights, split_key
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.reading import read_set, read_tensors


def _state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).state_dict())


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CONTAINERS = [
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict", "net", "weights", "params"),
    *("my_network", "generator", "best_optimized", "optimal_model", "upscaler"),
]


@pytest.mark.parametrize("key", CONTAINERS)
def test_any_nested_mapping_of_tensors_is_found(tmp_path: Path, key: str) -> None:
    adam = {"state": {0: {"exp_avg": torch.ones(2), "step": torch.ones(())}}, "param_groups": [{"lr": 0.1}]}
    beside = {"optimizer": adam, "epoch": torch.tensor(3), "rng_state": torch.ones(9), "metrics": {"f1": 0.5}}
    torch.save({**beside, key: _state()}, tmp_path / "a.pth")
    assert _same(read_tensors(tmp_path / "a.pth"), _state())
    torch.save({"checkpoint": [{**beside, key: _state()}]}, tmp_path / "b.pth")
    assert _same(read_tensors(tmp_path / "b.pth"), _state())


def test_names_without_dots_are_a_set_too(tmp_path: Path) -> None:
    state = dict(nn.Linear(2, 3).state_dict())
    torch.save({"net": state, "epoch": torch.tensor(3), "loss": torch.tensor(0.5)}, tmp_path / "a.pth")
    assert _same(read_tensors(tmp_path / "a.pth"), state)


def test_two_sets_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"state_dict": _state(0), "state_dict_ema": _state(1)}, file)
    with pytest.raises(CheckpointError) as refused:
        read_tensors(file)
    assert str(refused.value) == (
        "a.pth holds 2 sets of weights: state_dict (4 tensors), state_dict_ema (4 tensors); "
        "choose one with FILE#KEY, as in a.pth#state_dict_ema."
    )
    assert _same(read_tensors(f"{file}#state_dict"), _state(0))
    for key in ("state_dict_ema", "ema"):
        label, tensors = read_set(f"{file}#{key}")
        assert (label, _same(tensors, _state(1))) == ("state_dict_ema", True)
    with pytest.raises(
        CheckpointError, match="no set of weights for 'teacher'; it holds state_dict, state_dict_ema"
    ):
        read_tensors(f"{file}#teacher")


@pytest.mark.parametrize("key", ["model_EMA", "ModelEma", "ema-model", "EMA", "modelEma"])
def test_the_moving_average_is_found_however_it_is_spelled(tmp_path: Path, key: str) -> None:
    torch.save({"model": _state(0), key: _state(1)}, tmp_path / "a.pth")
    label, tensors = read_set(tmp_path / "a.pth#ema")
    assert (label, _same(tensors, _state(1))) == (key, True)


def test_sparse_tensors_are_read_and_those_without_values_refused(tmp_path: Path) -> None:
    torch.save({name: tensor.to_sparse() for name, tensor in _state().items()}, tmp_path / "a.pth")
    assert _same(read_tensors(tmp_path / "a.pth"), _state())
    torch.save({name: tensor.to("meta") for name, tensor in _state().items()}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds tensors without values"):
        read_tensors(tmp_path / "b.pth")


def test_equal_copies_are_one_set(tmp_path: Path) -> None:
    torch.save({"model": _state(), "model_ema": _state()}, tmp_path / "a.pth")
    assert _same(read_tensors(tmp_path / "a.pth"), _state())


@pytest.mark.parametrize("key", ["ema", "net_ema"])
def test_a_key_is_a_prefix_of_names_too(tmp_path: Path, key: str) -> None:
    both = {f"net.{n}": t for n, t in _state(0).items()} | {f"net_ema.{n}": t for n, t in _state(1).items()}
    save_file(both, tmp_path / "a.safetensors")
    assert _same(read_tensors(tmp_path / f"a.safetensors#{key}"), _state(1))
    torch.save({"state_dict": both}, tmp_path / "a.ckpt")
    assert _same(read_tensors(tmp_path / f"a.ckpt#{key}"), _state(1))
    bare = _state(0) | {f"ema.{n}": t for n, t in _state(1).items()}
    save_file(bare, tmp_path / "b.safetensors")
    assert _same(read_tensors(tmp_path / "b.safetensors#."), _state(0))
    assert _same(read_tensors(tmp_path / "b.safetensors#ema"), _state(1))


class Net(nn.Module):
    """An encoder and a head, which training scripts like to save apart."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2))
        self.head = nn.Linear(4, classes)


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def _parts(net: Net, ending: str = "") -> dict[str, Any]:
    return {f"{name}{ending}": dict(getattr(net, name).state_dict()) for name in ("encoder", "head")}


@pytest.mark.parametrize(
    "content",
    [
        lambda net: _parts(net),
        lambda net: {"epoch": 3, "model": _parts(net), "optimizer": {"state": {0: {"m": torch.ones(4)}}}},
        lambda net: {key: {f"module.{n}": t for n, t in part.items()} for key, part in _parts(net).items()},
        lambda net: {**_parts(net), "projector": dict(nn.Linear(4, 128).state_dict())},
    ],
)
@pytest.mark.parametrize("target", [Net, Wrapper])
def test_parts_that_were_saved_apart_are_joined(
    tmp_path: Path, content: Callable[[Net], object], target: type[nn.Module]
) -> None:
    source, model = Net(), target()
    torch.save(content(source), tmp_path / "a.pth")
    report = load_weights(model, tmp_path / "a.pth")
    assert report.missing == report.random == ()
    assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


def test_a_part_of_the_bare_model_loses_its_key(tmp_path: Path) -> None:
    """`backbone` is no attribute of the model, whose own names begin with `encoder`; `head` is one."""
    source, model = Net(), Net()
    body = {name: t for name, t in source.state_dict().items() if name.startswith("encoder")}
    torch.save({"backbone": body, "head": dict(source.head.state_dict())}, tmp_path / "a.pth")
    flat = {f"backbone.{name}": t for name, t in body.items()}
    flat |= {f"head.{name}": t for name, t in source.head.state_dict().items()}
    save_file(flat, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        model = Net()
        assert load_weights(model, tmp_path / name).missing == ()
        assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


def test_parts_that_are_there_twice_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    plain, ema, model = Net(), Net(), Net()
    torch.save(_parts(plain) | _parts(ema, "_ema"), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"encoder_ema, head_ema; choose .* a\.pth#encoder\+head\.$"):
        load_weights(model, tmp_path / "a.pth")
    for key, source in (("encoder+head", plain), ("encoder_ema+head_ema", ema), ("ema", ema)):
        load_weights(model, tmp_path / f"a.pth#{key}")
        assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


def test_a_part_alone_is_no_model(tmp_path: Path) -> None:
    torch.save({"encoder": dict(Net().encoder.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors of this Net: head.weight, head.bias"):
        load_weights(Net(), tmp_path / "a.pth")


def test_a_name_with_a_hash_is_a_name(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "run#3.pth")
    assert split_key(tmp_path / "run#3.pth") == (tmp_path / "run#3.pth", "")
    assert split_key(tmp_path / "run#3.pth#ema") == (tmp_path / "run#3.pth", "ema")
    assert _same(read_tensors(tmp_path / "run#3.pth"), _state())


def _shards(folder: Path, save: Any, ending: str) -> Path:
    state = _state()
    files = {name: f"model-{i:05}-of-00004.{ending}" for i, name in enumerate(state, 1)}
    for name, file in files.items():
        save({name: state[name]}, folder / file)
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    index = _shards(tmp_path, save_file, "safetensors")
    assert _same(read_tensors(index), _state())
    assert find_file(tmp_path) == index
    before = sha256_weights(index)
    save_file({"0.weight": torch.zeros(3, 2)}, tmp_path / "model-00001-of-00004.safetensors")
    assert sha256_weights(index) != before
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"index.json names model-00002-of-00004.safetensors, which is not in"
    ):
        read_tensors(index)


def test_shards_of_torch_are_read_by_their_index(tmp_path: Path) -> None:
    assert _same(read_tensors(_shards(tmp_path, torch.save, "bin")), _state())


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "x.json", 3, None])
def test_an_index_names_no_file_elsewhere(tmp_path: Path, name: object) -> None:
    (tmp_path / "in").mkdir()
    save_file(_state(), tmp_path / "x.safetensors")
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"no index of weight files|not in its folder"):
        read_tensors(index)
