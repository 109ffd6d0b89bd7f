"""ConvNeXt, ViT and Swin equal timm's own models; any timm model by name, and what it says to bad input."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import CardError, IllegalSize, UnknownName
from longvis_bench.registry.registry import Registry

REGISTRY = Registry()
NAMES = {
    **{f"convnext-{size[0]}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    **{f"vit-{size[0]}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    **{f"swin-{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")},
}
NANO = ("convnext-n", "vit-n", "swin-n")


def layout(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_families_have_timms_layout(name: str) -> None:
    with torch.device("meta"), LinspaceOnCpu():
        ours = REGISTRY.find(name).build(resolution=224, num_classes=1000)
        theirs = timm.create_model(NAMES[name], pretrained=False)
    assert layout(ours) == layout(theirs)


@pytest.mark.parametrize("name", NANO)
def test_the_families_compute_what_timm_computes(name: str) -> None:
    variant = REGISTRY.find(name)
    arguments = dict(variant.arguments)
    if "dim" in arguments:
        arguments |= {"embed_dim": arguments.pop("dim"), "img_size": 64}
    if variant.family == "swin":
        arguments["window_size"] = 8
    ours = variant.build(resolution=64, num_classes=1000).eval()
    theirs = timm.create_model(NAMES[f"{variant.family}-t"], pretrained=False, **arguments).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [64, 224])
def test_nano_variants_train_and_repeat(name: str, size: int) -> None:
    model = REGISTRY.find(name).build(resolution=size, num_classes=10)
    images = torch.randn(2, 3, size, size)
    model.train()(images).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 10)
        assert torch.equal(logits, model(images))


def test_stochastic_depth_is_off_unless_asked_for() -> None:
    for name in NANO:
        for asked, rates in ((name, {0.0}), (f"{name}[drop_path=0.2]", {0.0, 0.2})):
            model = REGISTRY.find(asked).build(resolution=256, num_classes=10)
            found = {round(getattr(module, "drop_prob", 0.0), 6) for module in model.modules()}
            assert rates <= found
            assert max(found) == max(rates)


def test_linspace_only_is_kept_on_the_cpu() -> None:
    with torch.device("meta"), LinspaceOnCpu():
        assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
        assert torch.linspace(0, 1, 3, device="meta").is_meta
        assert torch.empty(3).is_meta


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 96),
        ("vit_tiny_patch16_224.augreg_in21k", 96),
        ("resnet18", 100),
        ("swin_tiny_patch4_window7_224", 96),
        ("vit_tiny_patch16_224[dynamic_img_pad=True,dynamic_img_size=True]", 100),
        ("aimv2_large_patch14_224[depth=1,embed_dim=64,num_heads=2]", 112),
    ],
)
def test_any_timm_model_is_built_for_the_size(name: str, size: int) -> None:
    model = REGISTRY.find(f"timm:{name}").build(resolution=size, num_classes=7)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_any_timm_model_keeps_its_mode_and_takes_arguments() -> None:
    variant = REGISTRY.find("timm:vit_tiny_patch16_224[depth=2,patch_size=32]")
    with torch.device("meta"):
        model: Any = variant.build(resolution=128, num_classes=7, in_chans=1)
        assert model(torch.empty(1, 1, 128, 128)).shape == (1, 7)
    assert model.training
    assert len(model.blocks) == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vit_tinny_patch16_224", "did you mean vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.nowhere", "did you mean vit_tiny_patch16_224"),
        ("zzzz", "timm.list_models"),
    ],
)
def test_an_unknown_timm_name(name: str, sentence: str) -> None:
    with pytest.raises(UnknownName, match=sentence):
        REGISTRY.find(f"timm:{name}").build(resolution=64, num_classes=7)


@pytest.mark.parametrize(
    ("name", "size", "reason", "legal"),
    [
        ("vit_tiny_patch16_224", 100, "patches of 16 px do not fill 100 px", (96, 112, 128, 224)),
        ("xcit_nano_12_p16_224", 100, "should divide image dimensions", (96, 128, 224)),
        ("efficientformer_l1", 256, "it is built for one size", (224,)),
        ("halonet26t", 1000, r"HaloAttn asserts .* % self.block_size == 0", (256, 768, 1024)),
        ("haloregnetz_b", 1000, r"HaloAttn asserts .* % self.block_size == 0", (224, 896, 1120)),
        ("eva02_tiny_patch14_224", 1024, "patches of 14 px do not fill", (224, 896, 1022, 1036, 1120)),
        (
            *("aimv2_large_patch14_224[depth=1,embed_dim=64,num_heads=2]", 1024),
            *("patches of 14 px do not fill", (224, 896, 1022, 1036, 1120)),
        ),
        ("deepseek_vit_412m", 1024, "", (546, 1022, 1036, 1092)),
        ("crossvit_tiny_240", 1024, "", (240, 960, 1200)),
    ],
)
def test_a_size_timm_refuses(name: str, size: int, reason: str, legal: tuple[int, ...]) -> None:
    said = f"timm's {name.partition('[')[0]} says: .*{reason}"
    with pytest.raises(IllegalSize, match=said) as caught:
        REGISTRY.find(f"timm:{name}").build(resolution=size, num_classes=7)
    assert caught.value.legal == legal


def test_an_argument_timm_does_not_take() -> None:
    for name in ("resnet18", "vit_tiny_patch16_224"):
        with pytest.raises(CardError, match=rf"timm's {name} does not take its arguments: .*colour"):
            REGISTRY.find(f"timm:{name}[colour=3]").build(resolution=64, num_classes=7)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **_: object) -> None:
        raise OSError("We could not reach the hub. Long story.\nand more")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CardError) as caught:
        REGISTRY.find("timm:hf-hub:someone/some-model").build(resolution=64, num_classes=7)
    sentence = str(caught.value)
    assert sentence.startswith(
        "could not read config.json of hf-hub:someone/some-model from the hub (We could not"
    )
    assert sentence.endswith("or download its config.json once on a machine with a network.")
    assert "\n" not in sentence
