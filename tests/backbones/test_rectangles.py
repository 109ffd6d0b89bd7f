"""Every family at rectangles: height and width are not confused, and what a card states holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longvis_bench.adapters.conformance import smallest_size
from longvis_bench.backbones.agent import AgentAttention
from longvis_bench.backbones.fastervit import AbsolutePosition, RelativePosition
from longvis_bench.backbones.inline import InLineAttention
from longvis_bench.errors import IllegalSize
from longvis_bench.measure.flops.counter import count_variant
from longvis_bench.ops.relative_attention import biased_attention, relative_biases
from longvis_bench.ops.window_pyramid import WindowAttention, WindowBlock, frames
from longvis_bench.registry.registry import Registry, Variant
from longvis_bench.resolution import Rectangle, resolution_of, sides
from longvis_bench.weights.matching import load_weights
from longvis_bench.weights.store import save_weights

REGISTRY = Registry()
NANO = sorted(found.card.nano for found in REGISTRY.cards if found.card.nano)


def oblong(variant: Variant) -> Rectangle:
    """A standing rectangle of legal sides, the longer one at most six times the shorter."""
    short = smallest_size(variant)
    for factor in (2, 3, 4, 6):
        found = resolution_of((factor * short, short))
        assert isinstance(found, Rectangle)
        try:
            variant.plan(found)
        except IllegalSize:
            continue
        return found
    raise AssertionError(f"{variant.name} takes no rectangle of {short} px")


@pytest.mark.parametrize("name", NANO)
def test_every_family_runs_at_a_standing_and_at_a_lying_rectangle(name: str) -> None:
    variant = REGISTRY.find(name)
    tall = oblong(variant)
    wide = Rectangle(tall.width, tall.height)
    macs = {}
    for resolution in (tall, wide):
        torch.manual_seed(0)
        model = variant.build(resolution=resolution, num_classes=5).eval()
        with torch.no_grad():
            logits = model(torch.randn(2, 3, *sides(resolution)))
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        macs[resolution] = count_variant(variant, resolution, 5).macs
    assert macs[tall] == macs[wide]


@pytest.mark.parametrize("name", NANO)
def test_an_illegal_rectangle_names_legal_ones(name: str) -> None:
    variant = REGISTRY.find(name)
    with pytest.raises(IllegalSize, match="20x1000 px is not a legal size") as caught:
        variant.plan((1000, 20))
    assert caught.value.legal
    for near in caught.value.legal:
        variant.plan(resolution_of(near))


def transposed(grid: Tensor) -> Tensor:
    return grid.transpose(1, 2)


@pytest.mark.parametrize(("grid", "window"), [((6, 4), 2), ((4, 8), 4), ((3, 6), 0), ((8, 2), 4)])
def test_windows_of_a_lying_map_are_those_of_the_standing_one(grid: tuple[int, int], window: int) -> None:
    """Swin's windows, shifts and masks: transposing the map and the biases transposes the result."""
    torch.manual_seed(0)
    standing, lying = frames(grid, window, 2)[1], frames(grid[::-1], window, 2)[1]
    block = WindowBlock(8, WindowAttention(8, 2, standing.window), standing, 2.0, 0.0).double()
    other = WindowBlock(8, WindowAttention(8, 2, lying.window), lying, 2.0, 0.0).double()
    state = block.state_dict()
    rows, columns = (2 * side - 1 for side in standing.window)
    table = "attn.relative_position_bias_table"
    state[table] = state[table].view(rows, columns, -1).transpose(0, 1).flatten(0, 1)
    other.load_state_dict(state)
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    torch.testing.assert_close(transposed(other(transposed(x))), block(x))


def test_no_shift_along_a_side_of_one_window() -> None:
    assert [frame.shift for frame in frames((4, 8), 4, 2)] == [(0, 0), (0, 2)]
    assert frames((4, 8), 4, 2)[1].counts == (1, 2)


def test_agents_of_an_oblong_window_are_those_of_the_turned_one() -> None:
    """Transposing the window and the tables transposes the result."""
    torch.manual_seed(0)
    rows, columns = 2, 3
    standing, lying = (AgentAttention(8, 2, size, 4).double() for size in ((rows, columns), (columns, rows)))
    state = standing.state_dict()
    turn = {name: state[name].transpose(-1, -2) for name in ("an_bias", "na_bias", "dwc.weight")}
    turn |= {"ah_bias": state["aw_bias"].mT, "aw_bias": state["ah_bias"].mT}
    turn |= {"ha_bias": state["wa_bias"].transpose(2, 3), "wa_bias": state["ha_bias"].transpose(2, 3)}
    order = [0, 2, 1, 3]  # of the raster of 2 x 2 agents
    for name in ("an_bias", "na_bias"):
        turn[name] = turn[name][:, order]
    for name in ("ah_bias", "aw_bias"):
        turn[name] = turn[name][:, :, order]
    for name in ("ha_bias", "wa_bias"):
        turn[name] = turn[name][..., order]
    lying.load_state_dict({**state, **turn})
    windows = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    turned = windows.view(1, 1, rows, columns, 8).transpose(2, 3).flatten(2, 3)
    out = lying(turned).view(1, 1, columns, rows, 8).transpose(2, 3).flatten(2, 3)
    torch.testing.assert_close(out, standing(windows))


def test_inline_s_convolution_sees_an_oblong_window_as_it_lies() -> None:
    """Transposing the window and the convolution's weights transposes the result."""
    torch.manual_seed(0)
    attention = InLineAttention(4, 1, (2, 3)).double()
    windows = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    turned = windows.view(1, 1, 2, 3, 4).transpose(2, 3).flatten(2, 3)
    other = InLineAttention(4, 1, (3, 2)).double()
    state = attention.state_dict()
    for name in ("residual.2.weight", "residual.2.bias"):
        value = state[name]
        state[name] = value.view(4, 3, 3, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    other.load_state_dict(state)
    out = other(turned).view(1, 1, 3, 2, 4).transpose(2, 3).flatten(2, 3)
    torch.testing.assert_close(out, attention(windows))


def test_relative_biases_of_an_oblong_grid() -> None:
    """Against a loop over all pairs of tokens, with carriers before them."""
    torch.manual_seed(0)
    rows, columns, carriers = 2, 3, 1
    table = torch.randn(2, 2 * rows - 1, 2 * columns - 1)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    expected = torch.zeros(2, 7, 7)
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            bias = table[:, row - other_row + rows - 1, column - other_column + columns - 1]
            expected[:, i + carriers, j + carriers] = bias
    torch.testing.assert_close(relative_biases(table, carriers, 0, 7), expected)
    q, k, v = (torch.randn(1, 2, 7, 4) for _ in range(3))
    whole, parts = (biased_attention(q, k, v, table, carriers, most=most) for most in (2**20, 1))
    torch.testing.assert_close(parts, whole)


def test_positions_of_an_oblong_grid_are_rows_before_columns() -> None:
    torch.manual_seed(0)
    like = torch.zeros(1)
    position, relative = AbsolutePosition(4), RelativePosition(2)
    assert position((2, 3), like).shape == (6, 4)
    assert relative((2, 3), like).shape == (2, 3, 5)
    torch.testing.assert_close(position((3, 3), like), position(3, like))
    torch.testing.assert_close(relative((3, 3), like), relative(3, like))
    with torch.no_grad():  # a grid of two rows begins as one of two rows and two columns does, by rows
        first = position.cpb_mlp(torch.tensor([[-1.0, -1.0], [0.0, -1.0]]))
    torch.testing.assert_close(position((2, 2), like)[[0, 2]], first)


@pytest.mark.parametrize("name", ["vit-n", "vim-n", "longvit-n"])
def test_position_tables_of_a_square_are_interpolated_to_a_rectangle(name: str, tmp_path: Path) -> None:
    """Also a table of as many tokens, unless its file says that it is a rectangle's."""
    torch.manual_seed(0)
    variant = REGISTRY.find(name)
    square = variant.build(resolution=128, num_classes=5)
    table = next(key for key in square.state_dict() if key.endswith("pos_embed"))
    with torch.no_grad():  # a table that depends on the column alone
        prefix = square.state_dict()[table].shape[1] - math.prod(sides(grid_size(square)))
        side = sides(grid_size(square))[0]
        columns = torch.linspace(0, 1, side).repeat(side)[None, :, None]
        square.state_dict()[table][:, prefix:] = columns
    oblong = variant.build(resolution=(64, 256), num_classes=5)
    save_weights(square, tmp_path / "square.safetensors", {"resolution": 128})
    report = load_weights(oblong, tmp_path / "square.safetensors")
    rows, width = grid_size(oblong)
    assert width == 4 * rows
    moved = oblong.state_dict()[table][:, prefix:].unflatten(1, (rows, width))
    torch.testing.assert_close(moved[:, :1].expand_as(moved), moved)
    assert (moved[0, 0, 1:, 0] > moved[0, 0, :-1, 0]).all()
    assert "interpolated" in report.reshaped[table]
    save_weights(oblong, tmp_path / "oblong.safetensors", {"resolution": "256x64"})
    again = variant.build(resolution=(64, 256), num_classes=5)
    assert not load_weights(again, tmp_path / "oblong.safetensors").reshaped
    torch.testing.assert_close(again.state_dict()[table], oblong.state_dict()[table], rtol=0, atol=1e-3)


def grid_size(model: torch.nn.Module) -> tuple[int, int]:
    holder = model if hasattr(model, "grid_size") else model.patch_embed
    rows, columns = holder.grid_size  # type: ignore[union-attr,misc]
    return rows, columns
