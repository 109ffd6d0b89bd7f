"""LongViT (Wang et al., arXiv:2312.03558): a ViT whose attention is LongNet's dilated attention.

The image becomes one sequence of patch tokens with a learnt position table, goes through `depth` pre-norm
blocks, and is classified from the mean of all tokens:

    x' = x + W_o LN(DilatedAttention(LN(x)))
    x'' = x' + W_2 LN(GELU(W_1 LN(x')))

with the two inner norms of Magneto ("sub-LN", arXiv:2210.06423).  The attention itself, its branches and its
peculiarities are in `ops/dilated_attention.py`.

Peculiarities of the authors' code, which this module reproduces:

- segment lengths depend on the image size for 4096, 8192, 16384 and 32768 px only; at every other size they
  are those for 1024 px with patches of 32.  At 2048 px no segment spans the image, so distant patches meet
  only in the final mean.  `segment_length` sets other lengths.
- attention includes zero padding, which changes the outputs if a ratio does not divide its segments;
  `mask_padding` excludes it.
- the mixture of branches has detached weights: `differentiable_mixing`.
- there is no norm after the last block but the head's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from longvis_bench.ops.dilated_attention import dilated_attention
from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.inplace_layers import GELU
from longvis_bench.resolution import AnyResolution, sides
from longvis_bench.sizes.longvit import LONGVIT_RATIOS, check_longvit
from longvis_bench.sizes.plan import require_multiple, tokens_of

if TYPE_CHECKING:
    from jaxtyping import Float


class LongViT(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); the position table is made for it.
        num_classes: logits.
        patch_size: pixels per patch side.
        dim: channels of a token.
        depth: blocks.
        num_heads: attention heads; must divide `dim`.
        segment_length: tokens per segment, one per branch of dilated attention; `sizes.longvit.plan` gives
            those that the authors' code picks for the size.
        dilated_ratio: dilation ratio, one per branch.
        in_chans: channels of the image.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
        mask_padding: leave padding out of the softmax and from between the segments; the authors' code
            attends it, and it moves their outputs.
        differentiable_mixing: let gradients flow through the mixing weights; the authors' code detaches them.

    Raises:
        IllegalSize: the resolution is not a multiple of the patch.
        IllegalArgument: the arguments do not fit together.
    """

    head_modules = ("head_norm", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        segment_length: Sequence[int],
        dilated_ratio: Sequence[int] = LONGVIT_RATIOS,
        in_chans: int = 3,
        drop_path: float = 0.0,
        mask_padding: bool = False,
        differentiable_mixing: bool = False,
    ) -> None:
        super().__init__()
        check_longvit(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            segment_length=segment_length,
            dilated_ratio=dilated_ratio,
            in_chans=in_chans,
            drop_path=drop_path,
            mask_padding=mask_padding,
            differentiable_mixing=differentiable_mixing,
        )
        require_multiple(resolution, patch_size, "longvit")
        self.size = sides(resolution)
        self.grid_size = (self.size[0] // patch_size, self.size[1] // patch_size)
        self.patch_embed = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens_of(resolution, patch_size), dim))
        self.layers = Blocks(
            *[
                Block(
                    DilatedAttention(
                        dim,
                        num_heads,
                        segment_length,
                        dilated_ratio,
                        mask_padding=mask_padding,
                        differentiable_mixing=differentiable_mixing,
                    ),
                    dim,
                    drop_path * i / max(depth - 1, 1),
                )
                for i in range(depth)
            ]
        )
        self.head_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.02, b=0.02)
        self.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only the blocks' inputs, and recompute the rest in the backward pass."""
        set_grad_checkpointing(self, enable)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> tokens of the last block (batch, patches, dim).

        Raises:
            ValueError: the image is of another size than the model was built for.
        """
        if tuple(image.shape[-2:]) != self.size:
            height, width = image.shape[-2:]
            raise ValueError(
                f"this LongViT was built for images of {self.size[0]} x {self.size[1]} px, not"
                f" {height} x {width}; build it for that size."
            )
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        out: Tensor = self.layers(patches + self.pos_embed)
        return out

    @property
    def map_strides(self) -> tuple[int]:
        """Stride of the one map, in pixels: a patch."""
        return (self.patch_embed.stride[0],)

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image (batch, in_chans, height, width) -> the last map (batch, dim, rows, columns)."""
        (stride,) = self.map_strides
        grid = (image.shape[2] // stride, image.shape[3] // stride)
        return [torch.unflatten(self.forward_features(image).mT, 2, grid)]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, tokens, dim) -> logits (batch, classes), or the head's input (batch, dim)."""
        pooled: Tensor = self.head_norm(features.mean(1))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(
        self,
        image: Float[Tensor, "batch channels height width"],  # noqa: F722
    ) -> Float[Tensor, "batch classes"]:  # noqa: F722
        """Logits of a batch of images."""
        return self.forward_head(self.forward_features(image))


class Block(nn.Module):
    """x' and x'' of the module's docstring: attention and MLP, each normalised before and within."""

    def __init__(self, attention: nn.Module, dim: int, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = Mlp(dim, 4 * dim, act_layer=GELU, norm_layer=nn.LayerNorm)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.drop_path(self.ffn(self.ffn_norm(x)))
        return out


class DilatedAttention(nn.Module):
    """Multi-head dilated attention with a norm before the output projection."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        segment_length: Sequence[int],
        dilated_ratio: Sequence[int],
        *,
        mask_padding: bool = False,
        differentiable_mixing: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.segment_length = tuple(segment_length)
        self.dilated_ratio = tuple(dilated_ratio)
        self.mask_padding = mask_padding
        self.differentiable_mixing = differentiable_mixing
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same."""
        q, k, v = (self._heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = dilated_attention(
            q,
            k,
            v,
            self.segment_length,
            self.dilated_ratio,
            mask_padding=self.mask_padding,
            differentiable_mixing=self.differentiable_mixing,
        )
        out: Tensor = self.out_proj(self.inner_norm(mixed.flatten(2)))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> (batch, tokens, heads, channels of a head)."""
        return x.view(*x.shape[:2], self.num_heads, -1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(module.bias)


_OFFICIAL = (
    (r"^model\.", ""),
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.self_attn\.inner_attn_ln\.", ".attention.inner_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".attention_norm."),
    (r"\.final_layer_norm\.", ".ffn_norm."),
    (r"\.ffn\.ffn_layernorm\.", ".ffn.norm."),
    (r"^fc_norm\.", "head_norm."),
)


_OFFICIAL_QUERY = re.compile(r"(model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight")


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Rename the tensors of torchscale's LongViT to the names of this module, like timm's functions.

    Arguments:
        state_dict: tensors of the classifier, or of the encoder alone; other names are returned unchanged.
        model: unused; part of timm's signature.

    Returns:
        Tensors by this module's names.
    """
    if not any(map(_OFFICIAL_QUERY.fullmatch, state_dict)):
        return dict(state_dict)
    return {_our_name(name): tensor for name, tensor in state_dict.items()}


def _our_name(official: str) -> str:
    name = official
    for pattern, replacement in _OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name
