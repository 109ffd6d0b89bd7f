"""Which arguments of the native variants fit together, and what would be legal instead.

Pure Python, no torch: the sweep planner asks before anything runs, the models' constructors ask again.
Whether a resolution is legal is `sizes.py`'s matter, and arguments that no factory takes are the registry's.
"""

from __future__ import annotations

from collections.abc import Sequence

from longvis_bench.errors import IllegalArgument

WINDOW_ORDERS = ("position", "official")
MOST_NAMED = 12
"""Legal values named in a message."""


def check_atlas(
    *,
    window: int,
    stride: int,
    dim: int | None = None,
    heads: int = 1,
    stem_dim: int | None = None,
    window_order: str = "position",
    drop_path: float = 0.0,
    in_chans: int = 3,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make an Atlas; without `dim` its widths are not looked at."""
    _whole(window=window, stride=stride, heads=heads, in_chans=in_chans)
    _fraction("drop_path", drop_path)
    if stride < 2 or window % stride:
        strides = [n for n in _divisors(window) if n > 1]
        legal = _either(strides) if strides else "no stride does, as a window needs at least 2 tokens a side"
        raise IllegalArgument(
            f"stride must be at least 2 and divide the window of {window} ({legal}), not {stride}."
        )
    if window_order not in WINDOW_ORDERS:
        raise IllegalArgument(f'window_order must be "position" or "official", not {window_order!r}.')
    if dim is None:
        return
    _whole(dim=dim)
    _divides("heads", heads, f"the width of {dim}", dim)
    if stem_dim is not None and dim != 4 * stem_dim:
        raise IllegalArgument(
            f"stem_dim must be a quarter of the width of {dim}, that is {dim / 4:g}, not {stem_dim!r}."
        )


def check_atlas_depths(depths: Sequence[int], scales: int, size: str) -> None:
    """Raise IllegalArgument unless there is one number of blocks a scale; `size` names the image."""
    _whole_numbers("depths", depths)
    if len(depths) != scales:
        raise IllegalArgument(
            f"{size} make {scales} scales, so depths needs as many positive numbers, not {list(depths)}."
        )


def check_longvit(
    *,
    segment_length: Sequence[int],
    dilated_ratio: Sequence[int],
    patch_size: int = 1,
    dim: int | None = None,
    depth: int = 1,
    num_heads: int = 1,
    drop_path: float = 0.0,
    in_chans: int = 3,
    mask_padding: bool = False,
    differentiable_mixing: bool = False,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a LongViT; without `dim` its heads are not looked at."""
    _whole(patch_size=patch_size, depth=depth, num_heads=num_heads, in_chans=in_chans)
    _fraction("drop_path", drop_path)
    _true_or_false(mask_padding=mask_padding, differentiable_mixing=differentiable_mixing)
    _whole_numbers("segment_length", segment_length)
    _whole_numbers("dilated_ratio", dilated_ratio)
    lengths, ratios = len(segment_length), len(dilated_ratio)
    if lengths != ratios:
        raise IllegalArgument(
            f"segment_length and dilated_ratio must be of one length, one pair a branch, not {lengths} and"
            f" {ratios}: give {ratios} segment lengths or {lengths} ratios."
        )
    if dim is not None:
        _whole(dim=dim)
        _divides("num_heads", num_heads, f"the width of {dim}", dim)


def check_mambavision(
    *,
    window_size: Sequence[int],
    depths: Sequence[int] = (1, 1, 1, 1),
    num_heads: Sequence[int] = (1, 1, 1, 1),
    dim: int | None = None,
    in_dim: int = 1,
    mlp_ratio: float = 4,
    layer_scale: float | None = None,
    drop_path: float = 0.0,
    in_chans: int = 3,
    **_: object,
) -> None:
    """Raise IllegalArgument unless these make a MambaVision; without `dim` its heads are not looked at."""
    for name, values in (("depths", depths), ("window_size", window_size), ("num_heads", num_heads)):
        _whole_numbers(name, values, "(8, 8, 14, 7)")
        if len(values) != 4:
            raise IllegalArgument(
                f"mambavision needs {name} of four positive numbers, one a stage, not {values!r}."
            )
    _whole(in_dim=in_dim, in_chans=in_chans)
    _fraction("drop_path", drop_path)
    if not _is_number(mlp_ratio) or mlp_ratio <= 0:
        raise IllegalArgument(f"mlp_ratio must be a positive number, not {mlp_ratio!r}.")
    if layer_scale is not None and not _is_number(layer_scale):
        raise IllegalArgument(f"layer_scale must be a number or None, not {layer_scale!r}.")
    if dim is None:
        return
    _whole(dim=dim)
    for stage in (2, 3):
        width = dim * 2**stage
        _divides(f"num_heads of stage {stage + 1}", num_heads[stage], f"its width of {width}", width)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _whole(**values: object) -> None:
    for name, value in values.items():
        if not _is_whole(value):
            raise IllegalArgument(f"{name} must be a positive whole number, not {value!r}.")


def _whole_numbers(name: str, values: object, example: str = "(1, 2, 4)") -> None:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise IllegalArgument(
            f"{name} must be a list of positive whole numbers like {example}, not {values!r}."
        )
    if not all(_is_whole(value) for value in values):
        raise IllegalArgument(f"{name} must hold positive whole numbers only, not {list(values)}.")


def _fraction(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise IllegalArgument(f"{name} must be at least 0 and below 1, not {value!r}.")


def _true_or_false(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise IllegalArgument(f"{name} must be True or False, not {value!r}.")


def _divides(name: str, value: int, what: str, width: int) -> None:
    if width % value:
        legal = _either(_divisors(width))
        raise IllegalArgument(f"{name} must divide {what}, which {value} does not; {legal} do.")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _either(numbers: Sequence[int]) -> str:
    """`[1, 2, 4]` -> `1, 2 and 4`; of many, those in the middle are left out."""
    texts = [str(n) for n in numbers]
    if len(texts) > MOST_NAMED:
        texts = [*texts[: MOST_NAMED - 1], "...", texts[-1]]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
