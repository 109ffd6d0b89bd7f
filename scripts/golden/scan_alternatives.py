"""Other ways to scan on a CPU, forward only, for the table that says why numba is the default.

Not used by the product.  Each is a function of the seven inputs of `ops/selective_scan.py`.

- `numpy_loop`: no compiler, and one array operation a step.
- `compiled_loop`: torch.compile of the loop over steps; needs a C++ compiler on the user's machine.
- `cpp`: the same arithmetic as the numba kernel, in C++ with OpenMP; needs that compiler, or wheels of our
  own for every platform.
"""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = r"""
#include <cmath>
extern "C" void scan(const float* x, const float* delta, const float* A, const float* B, const float* C,
                     const float* D, const float* bias, float* y, long batch, long channels, long length) {
  constexpr int N = 8;
  #pragma omp parallel for collapse(2)
  for (long b = 0; b < batch; ++b)
    for (long d = 0; d < channels; ++d) {
      float state[N] = {0};
      const long row = (b * channels + d) * length;
      const float *Bs = B + b * N * length, *Cs = C + b * N * length;
      for (long t = 0; t < length; ++t) {
        const float raw = delta[row + t] + bias[d], dt = raw > 20.f ? raw : std::log1p(std::exp(raw));
        const float in = dt * x[row + t];
        float out = 0.f;
        for (int n = 0; n < N; ++n) {
          state[n] = std::exp(dt * A[d * N + n]) * state[n] + in * Bs[n * length + t];
          out += state[n] * Cs[n * length + t];
        }
        y[row + t] = out + D[d] * x[row + t];
      }
    }
}
"""


def numpy_loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """One step after another."""
    dt = np.logaddexp(0, delta.numpy() + delta_bias.numpy()[:, None], dtype=np.float32)
    driven, rates = dt * x.numpy(), A.numpy()
    state = np.zeros((*x.shape[:2], A.shape[1]), dtype=np.float32)
    y = np.empty(x.shape, dtype=np.float32)
    for t in range(x.shape[2]):
        state *= np.exp(dt[:, :, t, None] * rates)
        state += driven[:, :, t, None] * B.numpy()[:, None, :, t]
        y[:, :, t] = (state @ C.numpy()[:, :, t, None])[..., 0]
    return torch.from_numpy(y) + x * D[:, None]


def _loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    dt = F.softplus(delta + delta_bias[:, None])
    state = x.new_zeros(*x.shape[:2], A.shape[1])
    outputs = []
    for t in range(x.shape[2]):
        step = dt[:, :, t, None]
        state = torch.exp(step * A) * state + step * x[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, dim=2) + x * D[:, None]


def compiled_loop(*inputs: Tensor) -> Tensor:
    """`_loop`, all its steps unrolled into one graph."""
    out: Tensor = _compiled()(*inputs)
    return out


def cpp(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """What g++ makes of `SOURCE` for this machine."""
    y = torch.empty_like(x)
    given = [t.contiguous() for t in (x, delta, A, B, C, D, delta_bias)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*given, y)]
    _library().scan(*pointers, *[ctypes.c_long(size) for size in x.shape])
    return y


@cache
def _compiled() -> Any:
    return torch.compile(_loop, dynamic=False)


@cache
def _library() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp())
    source, built = folder / "scan.cpp", folder / "scan.so"
    source.write_text(SOURCE)
    options = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["g++", *options, str(source), "-o", str(built)], check=True)
    return ctypes.CDLL(str(built))
