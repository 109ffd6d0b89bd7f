"""Vim (Zhu et al., arXiv:2401.09417): a plain stack of Mamba blocks that read the tokens both ways.

Patches become one sequence, with a class token in its middle and a learned position table.  Each block norms
the sum of all before it and adds

    out_proj(SiLU(z) * (forward + backward) / 2)

where both directions have a causal convolution, step sizes, B, C and a scan of their own, and share the
projections in and out.  The two directions are one scan of this package with two groups.

What may surprise:

- with a class token, `final_pool_type` is ignored, as in the authors' code: the class token is read.
- the position table is a weight and grows with the image.
- the residual stream is kept in float32 in every dtype, and the scan's arithmetic too.
- the scan is no matrix product: its FLOPs stand in a column of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from longvis_bench.backbones.building import require_fixed
from longvis_bench.ops.grad_checkpointing import Blocks, set_grad_checkpointing
from longvis_bench.ops.selective_scan.operator import selective_scan
from longvis_bench.resolution import AnyResolution
from longvis_bench.sizes.vim import check_vim, grid_of

EXPAND = 2
"""Channels of the scans over those of the block."""
KERNEL = 4
"""Tokens that the causal convolution sees."""
EPS = 1e-5
FIXED: dict[str, tuple[object, ...]] = {
    "if_rope": (False,),
    "if_rope_residual": (False,),
    "bimamba_type": ("v2",),
    "fused_add_norm": (True, False),
}
"""Arguments of the authors that have one value here, or no effect on the result."""


class Vim(nn.Module):
    """The classifier.

    Arguments:
        resolution: pixels per side, or (height, width); the position table is made for it.
        num_classes: logits.
        embed_dim: channels of the tokens.
        depth: blocks.
        patch_size: pixels per side of a patch.
        stride: pixels from one patch to the next; None: `patch_size`.
        d_state: numbers of state per channel of a scan.
        rms_norm: RMSNorm instead of LayerNorm.
        residual_in_fp32: whether the residual stream is float32 where the model is half precision.
        final_pool_type: "mean" of the tokens, "none" (the last one) or "max" (of the logits); only without a
            class token.
        if_abs_pos_embed: whether there is a position table.
        if_cls_token: whether there is a class token.
        use_middle_cls_token: it stands in the middle of the sequence instead of in front.
        if_divide_out: the mean of both directions instead of their sum.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        fixed: arguments of the authors' code with the values that `FIXED` names.

    Raises:
        IllegalArgument: the arguments do not fit together.
    """

    head_modules = ("norm_f", "head")

    def __init__(
        self,
        *,
        resolution: AnyResolution,
        num_classes: int,
        embed_dim: int,
        depth: int,
        patch_size: int = 16,
        stride: int | None = None,
        d_state: int = 16,
        rms_norm: bool = True,
        residual_in_fp32: bool = True,
        final_pool_type: str = "mean",
        if_abs_pos_embed: bool = True,
        if_cls_token: bool = True,
        use_middle_cls_token: bool = True,
        if_divide_out: bool = True,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **fixed: object,
    ) -> None:
        super().__init__()
        require_fixed("vim", fixed, FIXED)
        check_vim(
            embed_dim=embed_dim,
            depth=depth,
            patch_size=patch_size,
            stride=stride,
            d_state=d_state,
            if_cls_token=if_cls_token,
            use_middle_cls_token=use_middle_cls_token,
            final_pool_type=final_pool_type,
            drop_path_rate=drop_path_rate,
        )
        self.pool, self.in_fp32 = final_pool_type, residual_in_fp32
        self.patch_size, self.stride = patch_size, stride or patch_size
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(in_chans, embed_dim, patch_size, stride=stride or patch_size)}
        )
        rows, columns = self.grid_size = grid_of(resolution, patch_size, stride or patch_size)
        tokens = rows * columns
        self.cls_position = tokens // 2 if use_middle_cls_token else 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if if_cls_token else None
        self.cls_position_embed = (
            nn.Parameter(torch.zeros(1, 1, embed_dim)) if if_cls_token and if_abs_pos_embed else None
        )
        self.patch_pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim)) if if_abs_pos_embed else None
        norm = nn.RMSNorm if rms_norm else nn.LayerNorm
        self.layers = Blocks(
            *[
                _Block(
                    BiMamba(embed_dim, d_state, if_divide_out),
                    norm(embed_dim, eps=EPS),
                    drop_path_rate * max(i - 1, 0) / max(depth - 1, 1),
                )
                for i in range(depth)
            ]
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm_f = norm(embed_dim, eps=EPS)
        self.head = nn.Linear(embed_dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for table in (self.cls_token, self.cls_position_embed, self.patch_pos_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, BiMamba):
                module.reset(len(self.layers))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward."""
        set_grad_checkpointing(self, enable)

    def embed(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> tokens, class token included."""
        x: Tensor = self.patch_embed["proj"](image).flatten(2).mT
        if self.patch_pos_embed is not None:
            x = x + self.patch_pos_embed
        if self.cls_token is None:
            return x
        token: Tensor = self.cls_token
        if self.cls_position_embed is not None:
            token = token + self.cls_position_embed
        before, after = x[:, : self.cls_position], x[:, self.cls_position :]
        return torch.cat([before, token.expand(len(x), -1, -1), after], dim=1)

    def forward_features(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> normalised tokens (batch, tokens, embed_dim)."""
        out: Tensor = self.norm_f(self.mix(image))
        return out

    @property
    def map_strides(self) -> tuple[int]:
        """Stride of the one map, in pixels: from one patch to the next."""
        return (self.stride,)

    def forward_maps(self, image: Tensor) -> list[Tensor]:
        """Image -> the last block's map (batch, embed_dim, rows, columns), without the class token."""
        tokens = self.mix(image)
        if self.cls_token is not None:
            before, after = tokens[:, : self.cls_position], tokens[:, self.cls_position + 1 :]
            tokens = torch.cat([before, after], dim=1)
        grid = [(side - self.patch_size) // self.stride + 1 for side in image.shape[2:]]
        return [torch.unflatten(tokens.mT, 2, grid)]

    def mix(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> tokens after all blocks, not normalised."""
        x = self.embed(image)
        if self.in_fp32 and x.dtype in (torch.bfloat16, torch.float16):
            x, residual = torch.zeros_like(x), x.float()
        else:
            x, residual = torch.zeros_like(x), x
        x, residual = self.layers((x, residual))
        out: Tensor = (residual + self.drop_path(x)).to(x.dtype)
        return out

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (batch, tokens, embed_dim) -> logits (batch, classes), or what they come from."""
        if self.cls_token is not None:
            pooled = tokens[:, self.cls_position]
        elif self.pool == "mean":
            pooled = tokens.mean(1)
        else:
            pooled = tokens[:, -1] if self.pool == "none" else tokens
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits if logits.ndim == 2 else logits.amax(1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, in_chans, height, width) -> logits (batch, classes)."""
        return self.forward_head(self.forward_features(image))


class _Block(nn.Module):
    """residual' = residual + x; x' = Mixer(norm(residual'))."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm
        self.drop_path = DropPath(drop_path)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(batch, tokens, width) twice: what the block before gave, and the sum of all before that."""
        x, residual = pair
        residual = residual + self.drop_path(x)
        return self.mixer(self.norm(residual.to(x.dtype))), residual


class BiMamba(nn.Module):
    """Mamba's mixer with a scan each way.

    Arguments:
        width: channels of the tokens.
        states: numbers of state per channel.
        halve: whether the directions are averaged rather than added.
    """

    def __init__(self, width: int, states: int, halve: bool) -> None:
        super().__init__()
        inner, self.rank, self.states = EXPAND * width, math.ceil(width / 16), states
        self.scale = 0.5 if halve else 1.0
        outputs = self.rank + 2 * states
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d, self.conv1d_b = (nn.Conv1d(inner, inner, KERNEL, groups=inner) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(inner, outputs, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(self.rank, inner) for _ in range(2))
        rate = torch.arange(1, states + 1).float().log()
        self.A_log, self.A_b_log = (nn.Parameter(rate.repeat(inner, 1)) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(inner)) for _ in range(2))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def reset(self, depth: int) -> None:
        """Mamba's first values: step sizes of 0.001 to 0.1, and projections out scaled by the depth."""
        low, high = math.log(0.001), math.log(0.1)
        for projection in (self.dt_proj, self.dt_proj_b):
            nn.init.uniform_(projection.weight, -(self.rank**-0.5), self.rank**-0.5)
            steps = torch.exp(torch.rand_like(projection.bias) * (high - low) + low)
            with torch.no_grad():
                projection.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        forth, back = self.scan(self.convolve(torch.stack([x.mT, x.mT.flip(-1)], dim=1))).unbind(1)
        both = (forth + back.flip(-1)).mT * F.silu(z)
        out: Tensor = self.out_proj(both * self.scale)
        return out

    def convolve(self, x: Tensor) -> Tensor:
        """Both directions' causal convolutions: (batch, 2, inner, tokens) -> the same, activated."""
        kernels = torch.cat([self.conv1d.weight, self.conv1d_b.weight])
        biases = torch.cat([self.conv1d.bias, self.conv1d_b.bias])  # type: ignore[list-item]
        sequences = F.pad(x.flatten(1, 2), (KERNEL - 1, 0))
        out = F.conv1d(sequences, kernels, biases, groups=len(kernels))
        return torch.unflatten(F.silu(out), 1, (2, -1))

    def scan(self, x: Tensor) -> Tensor:
        """Both directions' scans: (batch, 2, inner, tokens) -> the same, in x's dtype."""
        project = torch.stack([self.x_proj.weight, self.x_proj_b.weight])
        dt, B, C = torch.split(project @ x, [self.rank, self.states, self.states], dim=2)
        delta = torch.stack([self.dt_proj.weight, self.dt_proj_b.weight]) @ dt
        A = -torch.exp(torch.cat([self.A_log, self.A_b_log]).float())
        D, bias = (
            torch.cat(pair).float() for pair in ((self.D, self.D_b), (self.dt_proj.bias, self.dt_proj_b.bias))
        )
        y = selective_scan(x.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias)
        return torch.unflatten(y.to(x.dtype), 1, (2, -1))


def checkpoint_filter_fn(
    state_dict: Mapping[str, Tensor], model: nn.Module | None = None
) -> dict[str, Tensor]:
    """Take the class token's row out of the authors' position table, which has it where the token stands.

    So the rest is a grid, which can be resized.

    Arguments:
        state_dict: tensors by name; other names than the official ones are returned as they are.
        model: which model asks; where its class token stands decides which row it is.

    Returns:
        Tensors by our names.
    """
    table = state_dict.get("pos_embed")
    if table is None or not any(name.endswith(".mixer.A_b_log") for name in state_dict):
        return dict(state_dict)
    tensors = {name: tensor for name, tensor in state_dict.items() if name != "pos_embed"}
    if "cls_token" in state_dict:
        middle = not isinstance(model, Vim) or model.cls_position > 0
        row = (table.shape[1] - 1) // 2 if middle else 0
        tensors["cls_position_embed"] = table[:, row : row + 1]
        table = torch.cat([table[:, :row], table[:, row + 1 :]], dim=1)
    return {**tensors, "patch_pos_embed": table}
