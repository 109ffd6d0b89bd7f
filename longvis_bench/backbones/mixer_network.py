"""The network that a token mixer is measured in, that of arXiv:2503.12355, Table 3.

Patches of an image are embedded as tokens, then come blocks

    x' = x + Mixer(norm(x))      x'' = x' + MLP(norm(x'))

then a norm, a mean and a linear classifier.  A mixer that is a whole block, with residuals and MLPs inside,
takes the place of both lines.  There is no table of positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.ops.grad_checkpointing import Blocks
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.map_classifier import MapClassifier

OWN = ("dim", "heads", "grid", "block")
"""Arguments of a mixer's factory that the network gives."""


class MixerNetwork(MapClassifier):
    """The classifier.

    Arguments:
        mixer: block number, from 0 -> a module from (batch, rows, columns, dim) to the same.
        num_classes: logits.
        dim: channels of a token.
        blocks: how many there are.
        mlp_ratio: hidden width of the blocks' MLPs over `dim`; 0: no MLPs.
        patch: pixels per side of a token.
        in_chans: channels of the image.
        whole: whether a mixer is a whole block.
    """

    def __init__(
        self,
        mixer: Callable[[int], nn.Module],
        *,
        num_classes: int,
        dim: int,
        blocks: int,
        mlp_ratio: float,
        patch: int,
        in_chans: int = 3,
        whole: bool = False,
    ) -> None:
        super().__init__()
        mixers = [mixer(number) for number in range(blocks)]
        self.patch_embed = PatchEmbed(in_chans, dim, patch)
        self.layers = nn.ModuleList(
            [Blocks(*(mixers if whole else [MixerBlock(each, dim, mlp_ratio) for each in mixers]))]
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.patch = patch

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides of the maps, in pixels: of the one map."""
        return (self.patch,)

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> the map (batch, dim, rows, columns) of the last block."""
        grid: Tensor = self.layers[0](self.patch_embed(image))
        return [grid.permute(0, 3, 1, 2)]


class PatchEmbed(nn.Module):
    """Patches as tokens."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_chans, height, width) -> (batch, height / patch, width / patch, dim)."""
        out: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return out


class MixerBlock(nn.Module):
    """A mixer and an MLP, each a residual; with `mlp_ratio` 0 the mixer alone."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp = None
        if mlp_ratio:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELU)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, columns, dim) -> the same."""
        x = x + self.mixer(self.norm1(x))
        if self.mlp is None:
            return x
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def network_of(mixer: Callable[..., nn.Module], *, whole: bool) -> Callable[..., nn.Module]:
    """A factory of models, as the registry calls it, from a mixer's.

    Arguments:
        mixer: takes `dim`, `heads` and `grid` (rows, columns), `block` (its number, from 0) and `mlp_ratio`
            if it names them, and arguments of its own.
        whole: whether the mixer is a whole block.

    Returns:
        A function whose signature names the network's arguments and the mixer's own.
    """
    takes = inspect.signature(mixer).parameters

    def build(
        *,
        resolution: int,
        num_classes: int,
        in_chans: int = 3,
        dim: int,
        heads: int,
        blocks: int,
        mlp_ratio: float,
        patch: int,
        **own: Any,
    ) -> nn.Module:
        side = resolution // patch
        given = {"dim": dim, "heads": heads, "grid": (side, side), **own}
        given |= {"mlp_ratio": mlp_ratio} if "mlp_ratio" in takes else {}

        def numbered(block: int) -> nn.Module:
            return mixer(**given, **({"block": block} if "block" in takes else {}))

        return MixerNetwork(
            numbered,
            num_classes=num_classes,
            dim=dim,
            blocks=blocks,
            mlp_ratio=mlp_ratio,
            patch=patch,
            in_chans=in_chans,
            whole=whole,
        )

    network = [each for each in inspect.signature(build).parameters.values() if each.name != "own"]
    known = {*OWN, *(each.name for each in network)}
    more = [each.replace(kind=each.KEYWORD_ONLY) for name, each in takes.items() if name not in known]
    build.__signature__ = inspect.Signature([*network, *more])  # type: ignore[attr-defined]
    return build
