from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longvis_bench.backbones import mambavision
from longvis_bench.backbones.mambavision import MambaMixer, MambaVision, SelfAttention, WindowStage
from longvis_bench.errors import IllegalSize
from longvis_bench.ops.selective_scan.operator import reference
from longvis_bench.registry.registry import Registry

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "dim": 8,
    "in_dim": 4,
    "depths": [1, 1, 3, 2],
    "window_size": [8, 8, 4, 2],
    "mlp_ratio": 2,
    "num_heads": [1, 1, 2, 4],
    "layer_scale": None,
}


def small(**more: Any) -> MambaVision:
    torch.manual_seed(0)
    return MambaVision(**{**SMALL, **more})


def test_mixer_equals_the_paper_step_by_step() -> None:
    torch.manual_seed(1)
    mixer = MambaMixer(32).double()
    mixer.A_log.data += torch.randn_like(mixer.A_log) / 4
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    first, second = mixer.in_proj(x).mT.chunk(2, dim=1)
    first, second = (
        F.silu(F.conv1d(t, conv.weight, padding="same", groups=16))
        for t, conv in ((first, mixer.conv1d_x), (second, mixer.conv1d_z))
    )
    dt, B, C = mixer.x_proj(first.mT).split([2, 8, 8], dim=-1)
    A = -torch.exp(mixer.A_log.float())
    bias = mixer.dt_proj.bias.float()
    scanned = reference(first, mixer.dt_proj(dt).mT, A, B.mT, C.mT, mixer.D.float(), bias)
    slow = mixer.out_proj(torch.cat([scanned, second], dim=1).mT)
    fast = mixer(x)
    torch.testing.assert_close(fast, slow)
    weights = list(mixer.parameters())
    expected = torch.autograd.grad(slow.square().sum(), weights)
    for ours, theirs in zip(torch.autograd.grad(fast.square().sum(), weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_windows_are_padded_mixed_alone_and_cropped() -> None:
    torch.manual_seed(1)
    stage = WindowStage(8, 2, 4, 2.0, None, [0.0, 0.0, 0.0]).eval()
    x = torch.randn(2, 8, 6, 9)
    padded = F.pad(x, (0, 3, 0, 2))
    slow = torch.zeros_like(padded)
    for top in range(0, 8, 4):
        for left in range(0, 12, 4):
            box = (..., slice(top, top + 4), slice(left, left + 4))
            tokens = stage.blocks(padded[box].flatten(2).mT)
            slow[box] = tokens.mT.unflatten(2, (4, 4))
    torch.testing.assert_close(stage(x), slow[..., :6, :9])


def test_first_half_scans_and_last_half_attends() -> None:
    kinds = {
        depth: [type(block.mixer) for block in WindowStage(8, 2, 4, 2.0, None, [0.0] * depth).blocks]
        for depth in (2, 5)
    }
    assert kinds[2] == [MambaMixer, SelfAttention]
    assert kinds[5] == [MambaMixer] * 3 + [SelfAttention] * 2


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("size", [(64, 64), (100, 75)], ids=str)
def test_shapes_gradients_and_batch_invariance(size: tuple[int, int], layer_scale: float | None) -> None:
    model = small(layer_scale=layer_scale)
    images = torch.randn(2, 3, *size)
    model(images).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.eval()
    with torch.inference_mode():
        together = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    assert together.shape == (2, 5)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_drop_path_acts_in_training_only() -> None:
    model = small(drop_path=0.5, layer_scale=1.0)
    image = torch.randn(1, 3, 64, 64)
    model.eval()
    torch.testing.assert_close(model(image), model(image), rtol=0, atol=0)
    model.train()
    assert len({model(torch.cat([image, image])).sum().item() for _ in range(4)}) > 1


def test_published_sizes_build_on_meta() -> None:
    with torch.device("meta"):
        model = MambaVision(
            resolution=1024,
            num_classes=1000,
            dim=96,
            in_dim=64,
            depths=[3, 3, 7, 5],
            window_size=[8, 8, 14, 7],
            num_heads=[2, 4, 8, 16],
        )
        assert model(torch.empty(1, 3, 1024, 1024)).shape == (1, 1000)
    assert 49e6 < sum(p.numel() for p in model.parameters()) < 51e6


def test_illegal_size_names_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="32"):
        Registry().find("mambavision-n").build(resolution=16, num_classes=5)


def test_official_names_are_told_from_ours() -> None:
    official = ("patch_embed.conv_down.0.weight", "levels.2.blocks.0.mixer.A_log")
    renamed = mambavision.checkpoint_filter_fn(dict.fromkeys(official, torch.zeros(1)))
    assert list(renamed) == ["stem.0.weight", "stages.2.blocks.0.mixer.A_log"]
    ours = small().state_dict()
    assert mambavision.checkpoint_filter_fn(ours).keys() == ours.keys()


def test_compiles_without_graph_breaks() -> None:
    model = small().eval()
    image = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))
