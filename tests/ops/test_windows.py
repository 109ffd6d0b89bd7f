import pytest
import torch

from longvis_bench.ops.windows import pad_to_whole, window_partition, window_reverse


@pytest.mark.parametrize(("windows", "window"), [((1, 1), (3, 5)), ((2, 3), (4, 2)), ((4, 1), (1, 3))])
def test_cut_takes_rectangles_in_raster_order(windows: tuple[int, int], window: tuple[int, int]) -> None:
    (rows, columns), (height, width) = windows, window
    grid = torch.randn(2, rows * height, columns * width, 3)
    pieces = window_partition(grid, windows)
    expected = [
        grid[b, r * height : (r + 1) * height, c * width : (c + 1) * width].reshape(-1, 3)
        for b in range(2)
        for r in range(rows)
        for c in range(columns)
    ]
    torch.testing.assert_close(pieces, torch.stack(expected), rtol=0, atol=0)
    torch.testing.assert_close(window_reverse(pieces, windows, window), grid, rtol=0, atol=0)


def test_cut_of_one_window_copies_nothing() -> None:
    grid = torch.randn(2, 4, 4, 3)
    assert window_partition(grid, (1, 1)).data_ptr() == grid.data_ptr()


def test_cut_passes_gradients() -> None:
    grid = torch.randn(1, 4, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g: window_reverse(window_partition(g, (2, 3)).sin(), (2, 3), (2, 2)), grid
    )


def test_padding_is_zero_below_and_right() -> None:
    grid = torch.randn(1, 5, 7, 2)
    padded = pad_to_whole(grid, 4)
    assert padded.shape == (1, 8, 8, 2)
    torch.testing.assert_close(padded[:, :5, :7], grid, rtol=0, atol=0)
    assert not padded[:, 5:].any()
    assert not padded[:, :, 7:].any()
    assert pad_to_whole(padded, 4) is padded
