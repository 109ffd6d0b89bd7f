"""What the golden vectors do not store because a formula gives it: images, weights, and what is sampled.

Shared by `make.py`, which runs the authors' code, and the tests, which run ours.  Numbers come from the raw
output of NumPy's PCG64, which NumPy promises not to change, seeded with the tensor's name; so they are the
same under every version of torch and NumPy.
"""

import zlib
from collections.abc import Mapping, Sequence
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

SAMPLES = 256
"""Values kept of each stage's tokens and of the logits, at most."""
GRADIENT_SAMPLES = 8
"""Values kept of each parameter's gradient, at most."""


def image(batch: int, resolution: int) -> Tensor:
    """The input of every vector (batch, 3, resolution, resolution), by formula in float64."""
    places = [torch.arange(n, dtype=torch.float64) for n in (batch, 3, resolution, resolution)]
    b, c, y, x = torch.meshgrid(*places, indexing="ij")
    first = torch.sin(2 * torch.pi * ((c + 1) * 3 * x + (b + 1) * 5 * y) / resolution + 0.7 * c)
    second = torch.cos(2 * torch.pi * ((b + 2) * 11 * x - (c + 1) * 7 * y) / resolution)
    return (first + 0.5 * second).float()


def uniform(name: str, shape: Sequence[int]) -> Tensor:
    """Numbers of mean 0 and variance 1, uniform, that depend on the name and the shape alone."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(prod(shape))
    unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)  # 24 bits: exact in float32
    return torch.from_numpy((2 * unit - 1) * np.float32(sqrt(3))).reshape(tuple(shape))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """One tensor of a model: matrices keep the scale of what goes through, the rest is near its usual."""
    noise, last = uniform(name, shape), name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_var":
        return 1 + noise / 4
    if last == "A_log":
        return torch.arange(1.0, shape[1] + 1).log() + noise / 8
    if name.endswith("dt_proj.bias"):
        return noise / 2 - 1.5
    if last == "pos_embed":
        return noise / 2
    if len(shape) > 1:
        return noise / sqrt(prod(shape[1:]))
    return (0 if last in ("bias", "running_mean") else 1) + noise / 8


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A whole model, by its official names."""
    return {name: weight(name, shape) for name, shape in shapes.items()}


def sample(tensor: Tensor, most: int = SAMPLES) -> Tensor:
    """At most `most` values spread over a tensor in the order of its last dimension first: (values,)."""
    flat = tensor.detach().reshape(-1)
    if len(flat) <= most:
        return flat.clone()
    golden = np.arange(most) * ((sqrt(5) - 1) / 2) % 1
    return flat[torch.from_numpy((golden * len(flat)).astype(np.int64))]
