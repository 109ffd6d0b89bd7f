"""The yardstick: a fixed workload, timed between a model's samples in the same process.

The speed of a machine changes from minute to minute with other load on the host, clocks and memory pressure.
A slow-down affects the yardstick and the model alike, so their ratio compares models and runs better than
seconds do.  Two 3x3 convolutions of 32 channels at 96 px and two products of 384x384 matrices keep the
arithmetic units busy; one pass over 8 MiB loads the memory, and a chain of small operators the dispatcher.
The workload is the same for every cell: 283 million multiply-adds.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from longvis_bench.measure.latency.clock import Clock

SHARE = 0.2
"""Largest share of the timed seconds that the yardstick takes."""
FEWEST = 3
"""Fewest yardstick samples per process."""
CUDA_BATCH = 16
"""Batch size of the workload on an accelerator, which a single copy would not fill."""
_CHANNELS, _SIDE, _MATRIX, _STREAM, _SMALL = 32, 96, 384, 1 << 21, 32


class Yardstick:
    """The workload, ready to be timed on a device.

    Arguments:
        device: the one that the model runs on.
        clock: not shared with the model's timing, as a clock may record what it timed.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._clock = clock
        batch = 1 if device.type == "cpu" else CUDA_BATCH
        generator = torch.Generator().manual_seed(0)

        def values(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self._maps = values(batch, _CHANNELS, _SIDE, _SIDE)
        self._kernel = values(_CHANNELS, _CHANNELS, 3, 3) / 17.0
        self._matrices = values(batch, _MATRIX, _MATRIX)
        self._stream = values(_STREAM)
        self._small = values(_SMALL, _SMALL)
        self.samples_s: list[float] = []
        self._spent = 0.0
        self._began: float | None = None

    def sample(self) -> None:
        """Time the workload once, unless it has used up its share of the time."""
        if self._began is None:
            self._began = self._clock.now()
            self._clock.time(self._work)  # picks kernels and fills caches
        if self._spent <= SHARE * (self._clock.now() - self._began):
            self._take()

    def finish(self) -> tuple[float, ...]:
        """All samples; takes more first where there are fewer than `FEWEST`."""
        while len(self.samples_s) < FEWEST:
            self._take()
        return tuple(self.samples_s)

    def _take(self) -> None:
        self.samples_s.append(self._clock.time(self._work))
        self._spent += self.samples_s[-1]

    def _work(self) -> None:
        with torch.inference_mode():
            maps = F.conv2d(self._maps, self._kernel, padding=1)
            F.conv2d(maps, self._kernel, padding=1)
            product = self._matrices @ self._matrices
            product @ self._matrices
            self._stream.add(1.0)
            small = self._small
            for _ in range(16):
                small = F.gelu(small + self._small)
