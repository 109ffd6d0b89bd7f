"""Counts of timm models of many kinds against fvcore's, fused attention off: within 1 %, or told why not.

fvcore traces a real forward on the CPU, so the sizes are small: 64 px where a model takes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import timm
import torch
from timm.layers.config import set_fused_attn
from torch import nn

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.measure.flops.counter import count
from longvis_bench.measure.flops.fvcore_check import fvcore_trace

QUICK = """resnet18 regnety_002 convnextv2_atto vit_tiny_patch16_224 mobilevit_xxs mixer_s32_224
convmixer_1024_20_ks9_p14"""
REST = """mobilenetv3_small_050 efficientnet_b0 convnext_atto cait_xxs24_224 edgenext_xx_small
resnext26ts resnet26d seresnet18 regnetx_002 densenet121 vgg11 mobilenetv2_035 efficientnet_lite0
mobilenetv4_conv_small_035 mixnet_s ghostnet_050 mnasnet_small hrnet_w18_small dla46_c dpn48b inception_v3
xception41 rexnet_100 tinynet_e lcnet_035 nfnet_l0 skresnet18 res2net50_14w_8s cspresnet50 repvgg_a0
repghostnet_050 fasternet_t0 starnet_s1 inception_next_atto focalnet_tiny_srf poolformer_s12 caformer_s18
convformer_s18 deit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224
xcit_nano_12_p16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 crossvit_tiny_240 levit_128s
pit_ti_224 tnt_s_legacy_patch16_224 visformer_tiny coat_tiny coatnet_pico_rw_224 maxvit_pico_rw_256
mobilevitv2_050 efficientformer_l1 efficientformerv2_s0 pvt_v2_b0 twins_svt_small nest_tiny mvitv2_tiny
davit_tiny gcvit_xxtiny volo_d1_224 resmlp_12_224 gmlp_ti16_224 sequencer2d_s halonet26t lambda_resnet26t
botnet26t_256 hiera_tiny_224 tiny_vit_5m_224 repvit_m0_9 fastvit_t8 efficientvit_b0 efficientvit_m0
ghostnetv2_100 hgnetv2_b0 vovnet39a selecsls42 shvit_s1 swiftformer_xs rdnet_tiny nextvit_small mambaout_femto
csatv2"""
SIZES = {"inception_v3": 96, "crossvit_tiny_240": 240, "efficientformer_l1": 224, "halonet26t": 256}


class Unseen(NamedTuple):
    """What fvcore does not count in a model."""

    operator: str
    """Its name for it."""
    is_it: Callable[[nn.Module], bool]
    """Which modules do it."""


UNSEEN = {
    "convmixer_1024_20_ks9_p14": Unseen(
        "aten::_convolution_mode", lambda m: isinstance(m, nn.Conv2d) and m.padding == "same"
    ),
    "sequencer2d_s": Unseen("aten::lstm", lambda m: isinstance(m, nn.LSTM)),
}


@pytest.fixture(autouse=True)
def _unfused() -> Iterator[None]:
    set_fused_attn(False)
    yield
    set_fused_attn(True)


def create(name: str, size: int) -> nn.Module:
    with warnings.catch_warnings(), LinspaceOnCpu():
        warnings.simplefilter("ignore")
        try:
            model: nn.Module = timm.create_model(name, num_classes=10, img_size=size)
        except TypeError:  # convolutional models take any size
            model = timm.create_model(name, num_classes=10)
    return model.eval()


@pytest.mark.parametrize(
    "name", [*QUICK.split(), *(pytest.param(name, marks=pytest.mark.slow) for name in REST.split())]
)
def test_count_against_fvcore(name: str) -> None:
    size = SIZES.get(name, 64)
    theirs = fvcore_trace(create(name, size), size)
    with torch.device("meta"):
        model = create(name, size)
    ours = count(model, size)
    assert not ours.ledger.unknown
    explained = 0
    if name in UNSEEN:
        assert UNSEEN[name].operator in theirs.skipped
        explained = sum(ours.by_module[path] for path, m in model.named_modules() if UNSEEN[name].is_it(m))
        assert explained > 0.01 * ours.macs
    assert ours.macs - explained == pytest.approx(theirs.macs, rel=0.01)
