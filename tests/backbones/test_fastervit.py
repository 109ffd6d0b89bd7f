"""FasterViT, our own: gradients, memory, sizes and weights.

test_golden.py compares it with numbers of the authors' code, and test_fastervit_upstream.py with the package.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longvis_bench.backbones import fastervit
from longvis_bench.backbones.fastervit import RelativePosition
from longvis_bench.errors import IllegalArgument, IllegalSize
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.ops.relative_attention import biased_attention, relative_biases
from longvis_bench.registry.registry import Registry
from longvis_bench.weights.matching import load_weights

REGISTRY = Registry()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return REGISTRY.find("fastervit-n").build(resolution=256, num_classes=10)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))


def test_the_largest_cell_keeps_no_tables() -> None:
    """FasterViT-4 at 4096 px: a block's 16 x 5476 x 5476 biases, written out, were the largest tensor."""
    variant = REGISTRY.find("fastervit-4[window_size=(7,7,7,7)]")
    with torch.device("meta"):
        model = variant.build(resolution=4096, num_classes=10)
    assert sum(buffer.nbytes for buffer in model.buffers()) < 2**20
    stem = 64 * 2048**2
    assert count_variant(variant, 4096, 10).largest_output < 1.01 * stem


def attention_inputs(side: int, carriers: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Queries, keys and values of two images and two heads, and a table of biases, all with gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, carriers + side**2, 4, requires_grad=True) for _ in range(3))
    return (q, k, v), torch.randn(2, 2 * side - 1, 2 * side - 1, requires_grad=True)


@pytest.mark.parametrize(("side", "carriers"), [(5, 0), (4, 3)])
@pytest.mark.parametrize("queries", [1, 2, 7])
def test_attention_in_parts_is_the_whole_attention(side: int, carriers: int, queries: int) -> None:
    qkv, table = attention_inputs(side, carriers)
    tokens = carriers + side**2
    whole = biased_attention(*qkv, table, carriers)
    parts = biased_attention(*qkv, table, carriers, most=queries * tokens * 2)
    torch.testing.assert_close(parts, whole)
    wanted = torch.autograd.grad(whole.square().sum(), [*qkv, table])
    found = torch.autograd.grad(parts.square().sum(), [*qkv, table])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(biased_attention(*qkv, table, carriers, most=1), whole)


def test_biases_follow_relative_positions() -> None:
    """Against a loop over pairs."""
    side, carriers = 3, 2
    table = torch.randn(2, 2 * side - 1, 2 * side - 1)
    bias = relative_biases(table, carriers, 0, carriers + side**2)
    assert not bias[:, :carriers].any()
    assert not bias[:, :, :carriers].any()
    for query in range(side**2):
        for key in range(side**2):
            down, right = query // side - key // side, query % side - key % side
            expected = table[:, down + side - 1, right + side - 1]
            assert torch.equal(bias[:, carriers + query, carriers + key], expected)


def test_the_table_of_a_side_agrees_with_the_papers_form() -> None:
    """Biases between 0 and 16; coordinates are sign(d) log2(1 + |d|) / log2(8), d up to 8."""
    position = RelativePosition(2)
    nn.init.zeros_(position.cpb_mlp[2].weight)  # type: ignore[arg-type]
    assert torch.equal(position(4, torch.empty(0)), torch.full((2, 7, 7), 8.0))
    seen: list[Tensor] = []
    position.cpb_mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    position(3, torch.empty(0))
    rows = seen[0][:, 0, 0].tolist()
    assert rows == pytest.approx([-1.0566, -0.774, 0, 0.774, 1.0566], abs=1e-4)


def test_gradients_reach_every_parameter(model: nn.Module, images: Tensor) -> None:
    model.train()(images).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    biases = [p.grad for name, p in model.named_parameters() if "cpb_mlp" in name]
    assert biases
    assert all(grad is not None and grad.abs().sum() > 0 for grad in biases)


def test_gradient_checkpointing_changes_no_gradient(model: Any, images: Tensor) -> None:
    model.train()
    grads = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(images).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0])


def test_without_carrier_tokens_their_layer_is_dead() -> None:
    model = REGISTRY.find("fastervit-n").build(resolution=128, num_classes=10)
    model(torch.randn(2, 3, 128, 128)).square().mean().backward()
    dead = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert dead == {"levels.2.global_tokenizer.pos_embed"}


def test_state_dict_round_trip_and_copies(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        logits = model.eval()(images)
    other = REGISTRY.find("fastervit-n").build(resolution=256, num_classes=10).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.inference_mode():
        assert torch.equal(other(images), logits)
        assert torch.equal(copy.deepcopy(model)(images), logits)


def test_weights_of_one_size_run_at_another(model: nn.Module) -> None:
    larger = REGISTRY.find("fastervit-n[window_size=(7,7,7,7)]").build(resolution=448, num_classes=10)
    larger.load_state_dict(model.state_dict())


def test_shipped_weights_load_whole() -> None:
    """Files trained with the package hold one tensor twice; nothing else is left over."""
    card = REGISTRY.find("fastervit-n").card
    assert card is not None
    shipped = [entry for entry in card.weights if entry.file is not None]
    assert shipped
    for entry in shipped:
        assert entry.file is not None
        variant = REGISTRY.find(entry.variant)
        model = variant.build(resolution=entry.resolution, num_classes=entry.num_classes)
        report = load_weights(model, ROOT / "models" / "fastervit" / entry.file)
        assert (report.missing, report.random, report.reshaped) == ((), (), {})
        assert all(fastervit.ALIAS in name for name in report.unused)


def test_official_weights_are_recognised() -> None:
    names = [
        "levels.2.blocks.0.attn.pos_emb_funct.cpb_mlp.0.weight",
        "levels.2.blocks.0.attn.pos_emb_funct.relative_coords_table",
        "levels.2.global_tokenizer.to_global_feature.pos.weight",
    ]
    tensors = {name: torch.zeros(1) for name in names}
    assert list(fastervit.checkpoint_filter_fn(tensors)) == names[:1]
    assert fastervit.checkpoint_filter_fn({names[1]: tensors[names[1]]}).keys() == {names[1]}


@pytest.mark.parametrize("resolution", [256, 1024, 4096])
def test_published_windows_are_legal_and_counted(resolution: int) -> None:
    """Attention among carrier tokens against arithmetic: windows of 7 add what their number says."""
    seven = REGISTRY.find("fastervit-n[window_size=(7,7,7,7)]")
    windows = -(-resolution // 16 // 7)
    carriers, padded, width = (2 * windows) ** 2, (7 * windows) ** 2, 48
    found = count_variant(seven, resolution, 10)
    block = found.by_module["levels.2.blocks.0"]
    tokens = padded + carriers
    within = tokens * 12 * width**2 + windows**2 * 2 * width * 53**2
    across = carriers * 12 * width**2 + 2 * width * carriers**2
    positions = 512 * (49 * (2 + width) + 13**2 * (2 + 2))
    positions += 512 * (carriers * (2 + width) + (4 * windows - 1) ** 2 * (2 + 2))
    assert block == within + across + positions


def test_window_sizes_are_an_argument() -> None:
    variant = REGISTRY.find("fastervit-n[window_size=(7,7,16,8)]")
    assert "windows of 16 and 8" in variant.plan(256).reach
    model: Any = variant.build(resolution=256, num_classes=10)
    assert [level.window for level in model.levels[2:]] == [16, 8]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("window_size=(7,7)", "window_size of four positive numbers"),
        ("window_size=(7,7,7,1)", "windows of at least 2 tokens"),
        ("ct_size=9", "must not exceed stage 3's window of 7, which 9 does"),
        ("ct_size=0", "ct_size must be a positive whole number"),
        ("num_heads=(1,1,5,4)", "num_heads of stage 3 must divide its width of 48"),
        ("mlp_ratio=0", "mlp_ratio must be a positive number"),
        ("layer_scale='x'", "layer_scale must be a number or None"),
        ("do_propagation=1", "do_propagation must be True or False"),
    ],
)
def test_arguments_that_do_not_fit(arguments: str, says: str) -> None:
    with pytest.raises(IllegalArgument, match=says):
        REGISTRY.find(f"fastervit-n[{arguments}]").build(resolution=224, num_classes=2)


def test_the_smallest_size() -> None:
    with pytest.raises(IllegalSize, match="at least 64 px"):
        REGISTRY.find("fastervit-n").build(resolution=32, num_classes=2)
    model = REGISTRY.find("fastervit-n").build(resolution=64, num_classes=2).eval()
    assert torch.isfinite(model(torch.randn(1, 3, 64, 64))).all()


def test_the_package_is_not_needed() -> None:
    code = (
        "import sys; sys.modules['fastervit'] = None; import torch; "
        "from longvis_bench.registry.registry import Registry; "
        "m = Registry().find('fastervit-n').build(resolution=64, num_classes=2); m(torch.zeros(2, 3, 64, 64))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
