from typing import Any, cast

import pytest
import torch

from longvis_bench.backbones import longvit
from longvis_bench.backbones.longvit import Block, DilatedAttention, LongViT
from longvis_bench.errors import IllegalSize
from longvis_bench.ops.dilated_attention import reference
from longvis_bench.registry.registry import Registry

SMALL: dict[str, Any] = {
    "resolution": 64,
    "num_classes": 5,
    "patch_size": 16,
    "dim": 12,
    "depth": 2,
    "num_heads": 3,
    "segment_length": [4, 8, 16],
    "dilated_ratio": [1, 2, 4],
}


def attention(model: LongViT) -> DilatedAttention:
    """Of the first layer."""
    return cast(DilatedAttention, cast(Block, model.layers[0]).attention)


def small(**more: Any) -> LongViT:
    torch.manual_seed(0)
    return LongViT(**{**SMALL, **more})


@pytest.mark.parametrize("options", [{}, {"mask_padding": True}, {"differentiable_mixing": True}], ids=str)
def test_attention_module_equals_the_reference(options: dict[str, bool]) -> None:
    torch.manual_seed(1)
    module = DilatedAttention(12, 3, [4, 6], [1, 4], **options).double()
    x = torch.randn(2, 14, 12, dtype=torch.float64)
    q, k, v = (p(x).unflatten(-1, (3, 4)) for p in (module.q_proj, module.k_proj, module.v_proj))
    slow = module.out_proj(module.inner_norm(reference(q, k, v, [4, 6], [1, 4], **options).flatten(2)))
    weights = list(module.parameters())
    fast = module(x)
    torch.testing.assert_close(fast, slow)
    expected = torch.autograd.grad(slow.square().sum(), weights)
    for ours, theirs in zip(torch.autograd.grad(fast.square().sum(), weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mixing_gradients_differ_and_outputs_do_not() -> None:
    image = torch.randn(1, 3, 64, 64)
    models = [small(differentiable_mixing=flag) for flag in (False, True)]
    logits = [model(image) for model in models]
    torch.testing.assert_close(*logits)
    for out in logits:
        out.square().sum().backward()
    first, second = (attention(model).q_proj.weight.grad for model in models)
    assert first is not None
    assert second is not None
    assert not torch.allclose(first, second)


def test_shapes_gradients_and_batch_invariance() -> None:
    model = small()
    images = torch.randn(2, 3, 64, 64)
    model(images).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    model.eval()
    with torch.inference_mode():
        together = model(images)
        apart = torch.cat([model(image[None]) for image in images])
    assert together.shape == (2, 5)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_drop_path_acts_in_training_only() -> None:
    model = small(drop_path=0.5)
    image = torch.randn(1, 3, 64, 64)
    model.eval()
    torch.testing.assert_close(model(image), model(image), rtol=0, atol=0)
    model.train()
    assert len({model(image).sum().item() for _ in range(8)}) > 1


def test_published_sizes_build_on_meta() -> None:
    with torch.device("meta"):
        for resolution in (1024, 2048, 4096):
            model = cast(LongViT, Registry().find("longvit-s").build(resolution=resolution, num_classes=2))
            assert model(torch.empty(1, 3, resolution, resolution)).shape == (1, 2)
        assert attention(model).segment_length == (1024, 2048, 4096, 8192, 16384)


def test_illegal_size_names_legal_ones() -> None:
    with pytest.raises(IllegalSize, match="992, 1024"):
        Registry().find("longvit-n").build(resolution=1000, num_classes=2)


def test_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64 px, not 128 x 128"):
        small()(torch.zeros(1, 3, 128, 128))


def test_official_names_with_and_without_the_classifier() -> None:
    zero = torch.zeros(1)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    for prefix in ("", "model."):
        renamed = longvit.checkpoint_filter_fn({prefix + name: zero})
        assert list(renamed) == ["layers.0.attention.q_proj.weight"]
    ours = small().state_dict()
    assert longvit.checkpoint_filter_fn(ours).keys() == ours.keys()


@pytest.mark.filterwarnings(  # torch 2.11's own tracing of autograd functions does that
    "ignore:.*should not be instantiated:DeprecationWarning"
)
def test_compiles_without_graph_breaks() -> None:
    model = small().eval()
    image = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image))
