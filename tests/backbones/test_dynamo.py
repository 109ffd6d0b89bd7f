"""torch.compile sees every family as one graph: a graph break would make `--compile` rows mixtures."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch

from longvis_bench.registry.registry import Registry

RESOLUTION = 256
FAMILIES = [found.card.family for found in Registry().cards]


def graphs(name: str, mode: str) -> tuple[int, int, list[str]]:
    """Graphs and breaks of a model's forward, as `longvis bench` runs it in a mode, and why it breaks."""
    model = Registry().find(name).build(resolution=RESOLUTION, num_classes=10)
    model.train(mode == "train")
    image = torch.zeros(2, 3, RESOLUTION, RESOLUTION)
    context: AbstractContextManager[object] = (
        torch.autocast("cpu", torch.bfloat16) if mode == "train" else torch.inference_mode()
    )
    torch.compiler.reset()
    with context:
        told = torch._dynamo.explain(model)(image)
    return told.graph_count, told.graph_break_count, [reason.reason for reason in told.break_reasons]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_vit_is_one_graph(mode: str) -> None:
    assert graphs("vit-n", mode) == (1, 0, [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_one_graph(family: str, mode: str) -> None:
    assert graphs(f"{family}-n", mode) == (1, 0, [])
