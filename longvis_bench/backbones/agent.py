"""Agent attention in Swin's layout (Han et al., arXiv:2312.08874), from the paper.

A few agent tokens, means of the queries over a coarse raster, stand between queries and keys:

    A = pool(Q)      V_A = softmax(A K^T / sqrt(d) + B_1) V      out = softmax(Q A^T / sqrt(d) + B_2) V_A

with n agents of N tokens 2 N n d products instead of N^2 d, so that a window can be the whole map.  B_1 and
B_2 are sums of a table of 7 x 7 entries, resized to the window, and of one table per row and one per column.
A depthwise convolution of the values is added, for their diversity.

What may surprise:

- tables of rows and columns are as long as the window: parameters grow with its side, and weights of one size
  do not fit another.
- in shifted windows of agent attention nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
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
from longvis_bench.sizes.agent import check_agent
from longvis_bench.sizes.windowed import STAGES, maps_of

COARSE = 7
"""Entries per side of the tables that are resized to the window."""
FIXED: dict[str, tuple[object, ...]] = {
    "patch_size": (4,),
    "qkv_bias": (True,),
    "qk_scale": (None,),
    "drop_rate": (0.0,),
    "attn_drop_rate": (0.0,),
    "ape": (False,),
    "patch_norm": (True,),
    "use_checkpoint": (False,),
}


class AgentSwin(MapClassifier):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width).
        num_classes: logits.
        embed_dim: channels of stage 1; each later stage has twice those of the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: tokens per side of a window, of all stages or of each; no more than the map's, and 0 for
            the map's.
        agent_num: agents of each stage, square numbers; those of stages without agents are ignored.
        attn_type: a letter per stage: A agent attention, B softmax attention.
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
        agent_num: Sequence[int] = (9, 16, 49, 49),
        attn_type: str = "AAAB",
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("agent", fixed, FIXED)
        check_agent(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            agent_num=agent_num,
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
                    AgentAttention(width, heads, frame.window, agent_num[i])
                    if attn_type[i] == "A"
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


class AgentAttention(nn.Module):
    """Attention by way of agents, within windows.

    Arguments:
        width: channels of the tokens.
        heads: of the attention.
        window: tokens of a window, (rows, columns), or of each side.
        agents: per window and head, a square number.
    """

    def __init__(self, width: int, heads: int, window: int | tuple[int, int], agents: int) -> None:
        super().__init__()
        self.heads, self.window, self.raster = heads, sides(window), isqrt(agents)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dwc = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.an_bias, self.na_bias = (_table(heads, agents, COARSE, COARSE) for _ in range(2))
        rows, columns = self.window
        self.ah_bias, self.aw_bias = _table(1, heads, agents, rows, 1), _table(1, heads, agents, 1, columns)
        self.ha_bias, self.wa_bias = _table(1, heads, rows, 1, agents), _table(1, heads, 1, columns, agents)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, windows, tokens, width) -> the same; the mask of shifted windows is not used."""
        qkv = self.qkv(windows).flatten(0, 1)
        q, k, v = (t[0] for t in heads_of(qkv[None], self.heads, 3))
        agents = heads_of(self._pooled(qkv)[None], self.heads, 1)[0][0]
        gathered = F.scaled_dot_product_attention(agents, k, v, attn_mask=self._from_keys())
        mixed = F.scaled_dot_product_attention(q, agents, gathered, attn_mask=self._to_queries())
        tokens = mixed.transpose(1, 2).flatten(2) + self._convolved(qkv)
        out: Tensor = self.proj(tokens).view_as(windows)
        return out

    def _grid(self, qkv: Tensor, part: int) -> Tensor:
        """Queries (0) or values (2) as maps (windows, width, rows, columns)."""
        tokens = qkv.chunk(3, dim=-1)[part]
        return torch.unflatten(tokens.mT, 2, self.window)

    def _pooled(self, qkv: Tensor) -> Tensor:
        """Means of queries over the raster of agents: (windows, agents, width)."""
        return F.adaptive_avg_pool2d(self._grid(qkv, 0), self.raster).flatten(2).mT

    def _convolved(self, qkv: Tensor) -> Tensor:
        """The values' convolution: (windows, tokens, width)."""
        out: Tensor = self.dwc(self._grid(qkv, 2)).flatten(2).mT
        return out

    def _resized(self, table: Tensor) -> Tensor:
        return F.interpolate(table, self.window, mode="bilinear", align_corners=False).flatten(2)[None]

    def _from_keys(self) -> Tensor:
        """Bias of each agent and key (1, heads, agents, tokens)."""
        return self._resized(self.an_bias) + (self.ah_bias + self.aw_bias).flatten(3)

    def _to_queries(self) -> Tensor:
        """Bias of each query and agent (1, heads, tokens, agents)."""
        return self._resized(self.na_bias).mT + (self.ha_bias + self.wa_bias).flatten(2, 3)


def _table(*shape: int) -> nn.Parameter:
    table = torch.empty(*shape)
    nn.init.trunc_normal_(table, std=0.02)
    return nn.Parameter(table)
