"""Families from timm, built for the requested resolution, and any other timm model by name.

ConvNeXt, ViT, Swin and FocalNet are built from timm's classes with the arguments that stand in their cards,
so that what runs can be read there; the result equals `timm.create_model` of the published name
(tests/backbones/test_timm.py).
Always built with random weights; `weights/` loads pretrained ones and the row records it.

Stochastic depth is 0 by default in every family, because the published rates belong to recipes.
"""

from __future__ import annotations

import linecache
import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import timm
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, interleave_blocks
from timm.models.convnext import ConvNeXt
from timm.models.focalnet import FocalNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from longvis_bench.backbones.building import LinspaceOnCpu
from longvis_bench.errors import CardError, IllegalSize, UnknownName
from longvis_bench.resolution import AnyResolution, Resolution, canonical, sides
from longvis_bench.sizes.plan import near, near_multiples
from longvis_bench.text import message_of

HUB = "hf-hub:"
COMMON_STRIDE = 32
"""Pixels that most pyramids divide an image by."""
SMALL_PATCH = 8
"""Pixels of a patch of which 32 is a multiple."""


def convnext(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    depths: Sequence[int],
    dims: Sequence[int],
    drop_path: float = 0.0,
) -> nn.Module:
    """ConvNeXt (arXiv:2201.03545) of four stages with `depths` blocks of `dims` channels."""
    with LinspaceOnCpu():
        model: nn.Module = ConvNeXt(
            in_chans=in_chans,
            num_classes=num_classes,
            depths=tuple(depths),
            dims=tuple(dims),
            drop_path_rate=drop_path,
        )
    return model


def vit(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    dim: int,
    depth: int,
    num_heads: int,
    patch_size: int = 16,
    drop_path: float = 0.0,
) -> nn.Module:
    """ViT (arXiv:2010.11929) with a class token and a position for each patch."""
    with LinspaceOnCpu():
        model: nn.Module = VisionTransformer(
            img_size=_img_size(resolution),
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path,
        )
    return model


def swin(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    drop_path: float = 0.0,
) -> nn.Module:
    """Swin (arXiv:2103.14030), with the windows that `sizes.timm.swin` gives for the size."""
    with LinspaceOnCpu():
        model: nn.Module = SwinTransformer(
            img_size=_img_size(resolution),
            patch_size=4,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path,
        )
    return model


def maxvit(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    name: str,
    windows: int | str = "fixed",
    drop_path: float = 0.0,
    **arguments: Any,
) -> nn.Module:
    """MaxViT (arXiv:2204.01697), with the windows and grids that `sizes.timm.maxvit` gives for the size.

    Arguments:
        resolution: pixels per side, or (height, width).
        num_classes: logits.
        in_chans: channels of the image.
        name: timm's, which says depths and widths.
        windows: tokens per side of a window, and windows per side of a grid; "image": timm's own rule, by
            which both are the size over 32.
        drop_path: stochastic depth.
        arguments: passed to timm.
    """
    given = {**arguments, "num_classes": num_classes, "in_chans": in_chans, "drop_path_rate": drop_path}
    if windows != "image":
        given["transformer_window_size"] = given["transformer_grid_size"] = (windows, windows)
    return _create(name, resolution, given)


def focalnet(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    dim: int,
    depths: Sequence[int],
    focal_levels: Sequence[int],
    drop_path: float = 0.0,
) -> nn.Module:
    """FocalNet (arXiv:2203.11926) of four stages from `dim` channels with `focal_levels` contexts each."""
    with LinspaceOnCpu():
        model: nn.Module = FocalNet(
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=dim,
            depths=tuple(depths),
            focal_levels=tuple(focal_levels),
            drop_path_rate=drop_path,
        )
    return model


def halonet(
    *,
    resolution: AnyResolution,
    num_classes: int,
    in_chans: int = 3,
    name: str | None = None,
    widths: Sequence[int] = (),
    stem: int = 16,
    **arguments: Any,
) -> nn.Module:
    """HaloNet (arXiv:2103.12731): one of timm by its name, or one laid out as its halonet26t.

    Arguments:
        resolution: pixels per side, or (height, width).
        num_classes: logits.
        in_chans: channels of the image.
        name: timm's; None: laid out here.
        widths: channels of the four stages of two blocks each, with attention from the second half of the
            third on.
        stem: channels of the stem.
        arguments: passed to timm with a name.
    """
    given = {**arguments, "num_classes": num_classes, "in_chans": in_chans}
    if name is not None:
        return _create(name, resolution, given)
    with LinspaceOnCpu():
        model: nn.Module = ByobNet(_halo_config(widths, stem), img_size=_img_size(resolution), **given)
    return model


def _halo_config(widths: Sequence[int], stem: int) -> ByoModelCfg:
    first, second, third, fourth = widths
    return ByoModelCfg(
        blocks=(
            ByoBlockCfg(type="bottle", d=2, c=first, s=1, gs=0, br=0.25),
            ByoBlockCfg(type="bottle", d=2, c=second, s=2, gs=0, br=0.25),
            interleave_blocks(types=("bottle", "self_attn"), d=2, c=third, s=2, gs=0, br=0.25),
            ByoBlockCfg(type="self_attn", d=2, c=fourth, s=2, gs=0, br=0.25),
        ),
        stem_chs=stem,
        stem_type="tiered",
        stem_pool="maxpool",
        self_attn_layer="halo",
        self_attn_kwargs={"block_size": 8, "halo_size": 2},
    )


def build_any(
    *, resolution: AnyResolution, num_classes: int, in_chans: int = 3, name: str, **arguments: Any
) -> nn.Module:
    """Build any timm model with random weights; the factory of `timm:NAME`.

    Arguments:
        resolution: pixels per side, or (height, width); passed on to models that take an image size.
        num_classes: number of logits.
        in_chans: channels of the image.
        name: a name of `timm.list_models()`, with or without a weights tag, or "hf-hub:organisation/name".
        arguments: passed to timm.

    Raises:
        UnknownName: timm has no such model.
        IllegalSize: the model does not take the size; timm's reason, and sizes near it that it takes.
        CardError: the hub cannot be asked, or the model does not take the arguments.
    """
    require_known(name)
    resolution = canonical(resolution)
    given = {"num_classes": num_classes, "in_chans": in_chans, **arguments}
    try:
        model = _create(name, resolution, given)
        fault = _fault(name, model, resolution, given)
    except (AssertionError, ValueError) as error:
        fault, model = _said(error), None
    if model is None or fault is not None:
        tried = _candidates(name, resolution, given)
        legal = [size for size in tried if _takes(name, size, given)]
        if legal == [_published_size(name)] and len(tried) > len(legal):
            fault = f"it is built for one size ({fault})"
        raise IllegalSize(resolution, f"timm's {name} says: {fault}", legal)
    return model


def known_names() -> list[str]:
    """Names of timm's architectures, without tags of weights."""
    names: list[str] = timm.list_models()
    return names


def require_known(name: str) -> None:
    """Raise UnknownName, with near misses, unless timm has a model of this name."""
    if name.startswith(HUB):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = "`timm.list_models()` in Python names them all."
        raise UnknownName("timm model", name, timm.list_models(), hint)
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise UnknownName("timm model", name, [architecture, *known])


def _create(name: str, resolution: AnyResolution, given: Mapping[str, Any]) -> nn.Module:
    """Build the model for the resolution; models without an image size (convolutional ones) take any."""
    try:
        return _call(name, {**given, "img_size": _img_size(resolution)})
    except TypeError as error:
        if "img_size" not in str(error):
            raise CardError(f"timm's {name} does not take its arguments: {message_of(error)}.") from error
    try:
        return _call(name, given)
    except TypeError as error:
        raise CardError(f"timm's {name} does not take its arguments: {message_of(error)}.") from error


def _call(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with LinspaceOnCpu():
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (OSError, RuntimeError) as error:
        if not name.startswith(HUB):
            raise
        raise CardError(
            f"could not read config.json of {name} from the hub ({message_of(error).split('. ')[0]}): check "
            f"the name and the network, or download its config.json once on a machine with a network."
        ) from error
    return model


def _fault(name: str, model: nn.Module, resolution: Resolution, given: Mapping[str, Any]) -> str | None:
    """Reason why the model does not take the resolution, by a forward pass on meta; None if it does.

    timm's models check their input in the forward pass, not in the constructor, and a plain ViT silently
    drops pixels that do not fill a patch.
    """
    for patch in _patches(model):
        if any(side % patch for side in sides(resolution)):
            return f"patches of {patch} px do not fill {resolution} px"
    parameter = next(model.parameters(), None)
    if parameter is None or not parameter.is_meta:
        with torch.device("meta"):
            model = _create(name, resolution, given)
    channels = int(given["in_chans"])
    training = model.training
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.eval()(torch.empty(1, channels, *sides(resolution), device="meta"))
    except NotImplementedError:
        return None
    except (AssertionError, ValueError, RuntimeError) as error:
        # A model whose forward pass reads values cannot run on meta, so its sizes remain unknown.
        return None if "meta" in str(error).lower() else _said(error)
    finally:
        model.train(training)
    return None


def _takes(name: str, resolution: Resolution, given: Mapping[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            return _fault(name, _create(name, resolution, given), resolution, given) is None
    except (AssertionError, ValueError, RuntimeError):
        return False


def _patches(model: nn.Module) -> set[int]:
    """Sides of patches that have to fill the image: not those that overlap, nor of a model that pads."""
    embed = getattr(model, "patch_embed", None)
    patch, stride = getattr(embed, "patch_size", None), getattr(getattr(embed, "proj", None), "stride", None)
    pads = getattr(embed, "dynamic_img_pad", False)
    return set(patch) if isinstance(patch, tuple) and stride in (None, patch) and not pads else set()


def _unfolded(model: nn.Module) -> set[int]:
    """Sides of the patches of convolutions that do not overlap, but for the small ones of pyramids."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return {
        side
        for convolution in convolutions
        if tuple(convolution.kernel_size) == tuple(convolution.stride)
        for side in convolution.kernel_size
        if side > SMALL_PATCH
    }


def _said(error: Exception) -> str:
    """The message of an exception; where timm asserts without one, what it asserts, and in which module."""
    if str(error) or not isinstance(error, AssertionError):
        return message_of(error)
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("timm.")
    ]
    if not frames:
        return message_of(error)
    frame, line = frames[-1]
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    asserted = re.sub(r"^_?assert\b\s*\(?|,\s*(f?['\"].*)?\)?$", "", source)
    return (
        f"{type(frame.f_locals.get('self')).__name__} asserts {asserted}" if asserted else message_of(error)
    )


def _published_size(name: str) -> int | None:
    """The side that timm states for the model's weights."""
    size = None if name.startswith(HUB) else timm.get_pretrained_cfg_value(name, "input_size")
    return int(size[-1]) if size else None


def _candidates(name: str, resolution: Resolution, given: Mapping[str, Any]) -> list[Resolution]:
    """Candidates for legal sizes: multiples around the requested one of what the model divides the image by.

    That is its patch, the published size, which is a multiple of stride and window, and 32.
    """
    published = _published_size(name)
    steps = {COMMON_STRIDE, *filter(None, [published])}
    with suppress(AssertionError, ValueError, RuntimeError), torch.device("meta"):
        model = _create(name, published or resolution, given)
        steps |= _patches(model) | _unfolded(model)
    tried: set[Resolution] = {published} if published else set()
    for step in steps:
        tried |= set(near(resolution, partial(_around, step=step)))
    return sorted(tried - {resolution})


def _around(side: int, step: int) -> list[int]:
    """Multiples of a step just below, at and above a side."""
    return sorted({*near_multiples(side, step, step), (side - 1) // step * step} - {0})


def _img_size(resolution: AnyResolution) -> AnyResolution:
    """The size as timm takes it: a whole number for squares."""
    found = canonical(resolution)
    return found if isinstance(found, int) else sides(found)
