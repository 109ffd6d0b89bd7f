"""Conversions of a whole model's tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longvis_bench.ops.model_tensors import to_memory_format


@pytest.mark.parametrize("shape", [(1, 2, 3, 4, 1), (3, 4), (1, 2, 3, 4, 5, 6)])
def test_a_parameter_of_any_dimensions_has_a_place_beside_channels_last_convolutions(
    shape: tuple[int, ...],
) -> None:
    """The bias tables of attention often have five, which torch cannot convert."""
    model = nn.Conv2d(3, 4, 2)
    model.register_parameter("table", nn.Parameter(torch.rand(shape)))
    table = model.get_parameter("table")
    before = table.detach().clone()
    assert to_memory_format(model, torch.channels_last) is model
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    assert table.is_contiguous()
    assert torch.equal(table, before)
    to_memory_format(model, torch.contiguous_format)
    assert model.weight.is_contiguous()
