"""What `ratios.py` runs against each other: the authors' code and ours, as calls without arguments.

A case builds each contender from nothing, so that one can run alone in a process of its own.  Every contender
of a case has the same weights and the same input.  What the authors' code imports and cannot be had on a CPU
is stood in for: flash-attn by torch's own flash kernel for CPUs, which is the fastest there is, and mamba-ssm
by a loop over steps written as its package writes its reference, `naive_scan`.  Autograd's backward of that
loop is quadratic in the steps, as each step's slice has a gradient as large as the whole; our `reference` is
a loop too, without that cost, and is shown beside it.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import make
import scan_alternatives
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import longvis_bench
from longvis_bench.backbones import atlas
from longvis_bench.backbones.longvit import DilatedAttention
from longvis_bench.ops.fuse_conv_bn import fold_batch_norms
from longvis_bench.ops.selective_scan.operator import reference, selective_scan, use_backend
from longvis_bench.sizes.longvit import LONGVIT_DEFAULT_SEGMENTS, LONGVIT_RATIOS, longvit_segments

Call = Callable[[], list[Tensor]]
"""One timed call; what it returns is compared between the contenders."""
Checkouts = dict[str, Path]

THEIRS = "authors"


class Case(NamedTuple):
    """One line of the issue's table."""

    title: str
    family: str | None
    """Whose checkout it needs."""
    build: Callable[[str, Checkouts], Call]
    """The name of a contender -> its call."""
    contenders: tuple[str, ...]
    """The first is what the others are divided into."""
    memory: tuple[str, ...] = ()
    """Contenders whose transient memory is measured."""
    tolerance: float = 1e-4
    """Largest difference between outputs, absolute, or relative where the largest value is above 1."""


def _image(resolution: int) -> Tensor:
    return torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))


def _published(model: nn.Module) -> dict[str, Tensor]:
    """Weights by official names, the same in every process; statistics of batch norms are not trivial."""
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in sorted(state.items()):
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
        elif tensor.ndim > 1 and "A_log" not in name:
            fan_in = tensor[0].numel()
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    return state


def _model(kind: str, official: nn.Module, ours: Callable[[], nn.Module], resolution: int) -> nn.Module:
    """The authors' model, or ours with its weights, in the layout and with the folding that its name says."""
    state = _published(official)
    model = official
    if not kind.startswith(THEIRS):
        model = ours()
        longvis_bench.load_weights(model, state)
    model.eval()
    if "folded" in kind:
        fold_batch_norms(model, resolution)
    return model.to(memory_format=torch.channels_last) if "channels-last" in kind else model


def _inference(kind: str, model: nn.Module, resolution: int) -> Call:
    image = _image(resolution)
    if "channels-last" in kind:
        image = image.contiguous(memory_format=torch.channels_last)

    def call() -> list[Tensor]:
        with torch.inference_mode():
            return [_logits(model(image))]

    return call


def _train_step(kind: str, model: nn.Module, resolution: int) -> Call:
    """Forward, backward and AdamW; compared are logits and two gradients."""
    image, label = _image(resolution), torch.tensor([3])
    if "channels-last" in kind:
        image = image.contiguous(memory_format=torch.channels_last)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    parameters = list(model.parameters())
    first = next(p for p in parameters if p.ndim == 4)
    last = next(p for p in reversed(parameters) if p.ndim == 2)

    def call() -> list[Tensor]:
        optimizer.zero_grad()
        logits = _logits(model(image))
        F.cross_entropy(logits, label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert first.grad is not None
        assert last.grad is not None
        return [logits.detach(), first.grad, last.grad]

    return call


def _logits(out: Any) -> Tensor:
    logits = out["logit"] if isinstance(out, dict) else out
    assert isinstance(logits, Tensor)
    return logits


def _atlas(variant: str, resolution: int, mode: Callable[[str, nn.Module, int], Call] = _inference) -> Any:
    published: dict[str, Any] = make.ATLAS_S if variant == "atlas-s" else make.ATLAS_B
    sizes = {name: published[name] for name in ("dim", "heads", "stem_dim")}
    config = {
        **published,
        "resolution": resolution,
        "depths": [2, 10] if resolution == 1024 else [2, 2, 8],
        "num_classes": 100,
        "batch": 1,
    }

    def build(kind: str, checkouts: Checkouts) -> Call:
        warnings.simplefilter("ignore")
        official = make.atlas(checkouts["atlas"], config, {})[0]
        ours = partial(
            atlas.Atlas,
            resolution=resolution,
            num_classes=100,
            depths=config["depths"],
            window_order="official",
            **sizes,
        )
        return mode(kind, _model(kind, official, ours, resolution), resolution)

    return build


def _mambavision(variant: str, entry: str, resolution: int) -> Any:
    config = {"entry": entry, "num_classes": 100}

    def build(kind: str, checkouts: Checkouts) -> Call:
        warnings.simplefilter("ignore")
        official = make.mambavision(checkouts["mambavision"], config, {})[0]
        module: Any = importlib.import_module("mambavision.models.mamba_vision")
        module.selective_scan_fn = naive_scan_fn
        ours = partial(longvis_bench.build, variant, resolution=resolution, num_classes=100)
        return _inference(kind, _model(kind, official, ours, resolution), resolution)

    return build


def naive_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, delta_bias: Tensor, **_: Any
) -> Tensor:
    """mamba-ssm's interface over `naive_scan`."""
    return naive_scan(u, delta, A, B, C, D, delta_bias)


def naive_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """One step after another, all decays and inputs made beforehand: the usual form without a kernel."""
    dt = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    driven = torch.einsum("bdl,bnl,bdl->bdln", dt, B, x)
    state = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for t in range(x.shape[2]):
        state = decay[:, :, t] * state + driven[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2) + x * D[:, None]


SCANS: dict[str, Callable[..., Tensor]] = {
    "naive loop": naive_scan,
    "loop of linear cost": reference,
    "numpy loop": scan_alternatives.numpy_loop,
    "torch.compile of a loop": scan_alternatives.compiled_loop,
    "C++ by g++": scan_alternatives.cpp,
    "numba": selective_scan,
    "torch": selective_scan,
    "float64": reference,
}


def scan_inputs(batch: int, channels: int, length: int, states: int = 8) -> list[Tensor]:
    """Values as in a trained mixer, float32."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, channels, length)] * 2 + [(batch, states, length)] * 2
    x, delta, B, C = (torch.randn(*shape, generator=generator) for shape in shapes)
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    D, bias = torch.ones(channels), torch.randn(channels, generator=generator) - 2
    return [x, delta, A, B, C, D, bias]


def _scan(shape: tuple[int, int, int], train: bool) -> Any:
    def build(kind: str, _: Checkouts) -> Call:
        inputs = [t.double() if kind == "float64" else t for t in scan_inputs(*shape)]
        scan = SCANS[kind]
        backend = kind if kind == "torch" else "numba"

        def call() -> list[Tensor]:
            with use_backend(backend), torch.set_grad_enabled(train):
                given = [t.requires_grad_(train) for t in inputs]
                out = scan(*given)
                return [out, *torch.autograd.grad(out.sum(), given)] if train else [out]

        return call

    return build


def _longvit(tokens: int, train: bool) -> Any:
    """The attention module of 12 heads and 768 channels, with the segments published for that many tokens."""
    segments = LONGVIT_DEFAULT_SEGMENTS if tokens == 1024 else longvit_segments(4096)

    def build(kind: str, checkouts: Checkouts) -> Call:
        official = _torchscale_attention(checkouts["longvit"], segments)
        state = _published(official)
        module, own = official, kind != THEIRS
        if own:
            module = DilatedAttention(768, 12, segments, LONGVIT_RATIOS)
            names = {name: name.replace("inner_attn_ln", "inner_norm") for name in state}
            module.load_state_dict({names[name]: tensor for name, tensor in state.items()})
        del official, state
        x = torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(2)).requires_grad_(train)
        parameters = [x, *module.parameters()] if train else []

        def call() -> list[Tensor]:
            with torch.set_grad_enabled(train):
                out = module(x) if own else module(x, x, x)[0]
                if not train:
                    return [out]
                gradients = torch.autograd.grad(out.square().sum(), parameters)
            return [out.detach(), gradients[0]]

        return call

    return build


def _torchscale_attention(checkout: Path, segments: Iterable[int]) -> nn.Module:
    make.stub("fairscale")
    make.stub("fairscale.nn", checkpoint_wrapper=None, wrap=None)
    sys.path.insert(0, str(checkout))
    parent: Any = importlib.import_module("torchscale.component.multihead_attention")
    parent.flash_attn_func = _flash_on_cpu
    module: Any = importlib.import_module("torchscale.component.dilated_attention")
    options = SimpleNamespace(
        flash_attention=True,
        segment_length=list(segments),
        dilated_ratio=list(LONGVIT_RATIOS),
        seq_parallel=False,
        xpos_rel_pos=False,
        layernorm_eps=1e-5,
        multiway=False,
    )
    built: nn.Module = module.DilatedAttention(options, 768, 12, self_attention=True, subln=True)
    return built


def _flash_on_cpu(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """flash-attn's interface over torch's kernel: (batch, tokens, heads, channels)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(t.transpose(1, 2) for t in (q, k, v))
    )
    return out.transpose(1, 2), lse


INFERENCE = (THEIRS, "plain, channels-last", "folded, channels-last", f"{THEIRS}, channels-last")
SCAN_SHAPES = ((25, 160, 196), (100, 256, 196), (25, 320, 49), (100, 512, 49))

CASES = {
    **{
        f"{variant}-{size}": Case(
            f"{variant} inference {size} px",
            "atlas",
            _atlas(variant, size),
            contenders,
            contenders[:3],
        )
        for variant, size, contenders in (
            ("atlas-s", 1024, INFERENCE),
            ("atlas-s", 2048, INFERENCE[:3]),
            ("atlas-b", 1024, INFERENCE[:2]),
        )
    },
    "atlas-s-1024-train": Case(
        "atlas-s train step 1024 px",
        "atlas",
        _atlas("atlas-s", 1024, _train_step),
        (THEIRS, "channels-last"),
        (THEIRS, "channels-last"),
        tolerance=1e-3,  # of the stem's gradient: in channels-last the authors' own is as far from float64
    ),
    "mambavision-s-1024": Case(
        "mambavision-s inference 1024 px, naive loop for mamba-ssm",
        "mambavision",
        _mambavision("mambavision-s", "mamba_vision_S", 1024),
        INFERENCE,
        INFERENCE[:3],
    ),
    **{
        f"scan-{'-'.join(map(str, shape))}{'-train' if train else ''}": Case(
            f"selective scan {shape}, 8 states, {'forward and backward' if train else 'forward'}",
            None,
            _scan(shape, train),
            ("naive loop", "loop of linear cost", "numba", "torch"),
        )
        for shape in SCAN_SHAPES
        for train in (False, True)
    },
    **{
        f"scan-alternatives-{'-'.join(map(str, shape))}": Case(
            f"selective scan {shape}, 8 states, forward, alternatives",
            None,
            _scan(shape, False),
            tuple(name for name in SCANS if name != "float64"),
        )
        for shape in SCAN_SHAPES[:1]
    },
    **{
        f"longvit-{tokens}{'-train' if train else ''}": Case(
            f"LongViT attention, 12 heads of 64, {tokens} tokens, {'train' if train else 'inference'}",
            "longvit",
            _longvit(tokens, train),
            (THEIRS, "ours"),
            (THEIRS, "ours"),
        )
        for tokens in (1024, 4096, 16384)
        for train in (False, True)
    },
}
"""Cases by name, for `--only`."""
