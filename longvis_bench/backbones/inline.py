"""InLine attention in Swin's layout (Han et al., arXiv:2412.06590), from the paper.

Linear attention that, like softmax, maps different queries to different weights.  Instead of dividing, the
weights are shifted to sum to one,

    w_ij = s_ij - mean_j s_ij + 1/N      s_ij = q_i k_j^T / (N sqrt(d))

so that, with q = q_i / sqrt(d),

    out_i = q (sum_j k_j^T v_j) / N + (1 - q mean_j k_j^T) mean_j v_j.

Softmax also weighs a token's neighbours more; here a depthwise 3 x 3 convolution of the values is added,
whose weights a small network makes from the mean of the window's tokens.

What may surprise:

- weights may be negative.
- the paper has a function of queries and keys in the scores; none acts here, as in the Swin form of the
  authors' code, whose `kernel_func` changes nothing.
- the convolution's weights differ from image to image (and from window to window).
- nothing depends on the window's size: one set of weights runs at any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.ops.map_classifier import MapClassifier
from longvis_bench.ops.window_pyramid import (
    Embedding,
    Merging,
    Stage,
    WindowAttention,
    WindowBlock,
    frames,
    heads_of,
    initialise,
)
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.inline import check_inline
from longvis_bench.sizes.windowed import STAGES, maps_of

KERNEL = 3
"""Side of the residual convolution."""
FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": (4,),
    "qkv_bias": (True,),
    "qk_scale": (None,),
    "drop_rate": (0.0,),
    "attn_drop_rate": (0.0,),
    "ape": (False,),
    "patch_norm": (True,),
    "use_checkpoint": (False,),
    "kernel_func": ("exp", "identity", "none", "relu", None),
}


class InLineSwin(MapClassifier):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width).
        num_classes: logits.
        embed_dim: channels of stage 1; each later stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: tokens per side of a window, of all stages or of each; no more than the map's, and 0 for
            the map's.
        attn_type: a letter per stage: I InLine attention, S softmax attention.
        mlp_ratio: hidden width of the MLPs over the block's width.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the one value that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int | Sequence[int],
        attn_type: str = "IIII",
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("inline", fixed, FIXED)
        check_inline(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            attn_type=attn_type,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        windows = [window_size] * STAGES if isinstance(window_size, int) else list(window_size)
        rates = iter([drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))])
        self.patch_embed = Embedding(in_chans, embed_dim)
        self.layers = nn.ModuleList()
        for i, grid in enumerate(maps_of(resolution)):
            width, heads = embed_dim * 2**i, num_heads[i]
            blocks = [
                WindowBlock(
                    width,
                    InLineAttention(width, heads, frame.window)
                    if attn_type[i] == "I"
                    else WindowAttention(width, heads, frame.window),
                    frame,
                    mlp_ratio,
                    next(rates),
                )
                for frame in frames(grid, windows[i], depths[i])
            ]
            self.layers.append(Stage(blocks, Merging(width) if i + 1 < STAGES else None))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(initialise)


class InLineAttention(nn.Module):
    """Injective linear attention with a residual convolution, within windows.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        window: tokens of a window, (rows, columns), or of each side.
    """

    def __init__(self, width: int, heads: int, window: int | tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, sides(window)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.residual = nn.Sequential(
            nn.Conv1d(width, width, 1, groups=heads),
            GELU(),
            nn.Conv1d(width, width * KERNEL * KERNEL, 1, groups=heads),
        )

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, windows, tokens, width) -> the same; the mask of shifted windows is not used."""
        qkv = self.qkv(windows)
        q, k, v = (t.flatten(0, 1) for t in heads_of(qkv, self.heads, 3))
        q, count = q * q.shape[-1] ** -0.5, k.shape[2]
        summed = (k.mT / count) @ v
        rest = 1 - q @ k.mean(2, keepdim=True).mT
        mixed = q @ summed + rest * v.mean(2, keepdim=True)
        tokens = mixed.transpose(1, 2).flatten(2) + self._convolved(windows.flatten(0, 1), qkv.flatten(0, 1))
        out: Tensor = self.proj(tokens).view_as(windows)
        return out

    def _convolved(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Values convolved with the window's own weights: (windows, tokens, width)."""
        windows, _, width = tokens.shape
        weights = self.residual(tokens.mean(1)[..., None]).reshape(windows * width, 1, KERNEL, KERNEL)
        values = qkv.chunk(3, dim=-1)[2].mT.reshape(1, windows * width, *self.window)
        out = F.conv2d(values, weights, padding=KERNEL // 2, groups=windows * width)
        return out.view(windows, width, -1).mT
