"""What the data sets that read no files of the user share: batches by index, and nothing that can break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from longvis_bench.data.protocol import LoadableData, Split
from longvis_bench.resolution import Resolution

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class WithoutFiles(LoadableData, Protocol):
    """A data set of which code determines every image."""

    broken: Mapping[str, str] = {}
    notes: Sequence[str] = ()
    fresh: bool = False

    def batch(
        self,
        split: Split,
        indices: Sequence[int],
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images and labels by their index in the split; see `ImageData.batch`."""
        import torch

        loaded = [self.load(split, index, resolution) for index in indices]
        images = self.finish([image for image, _ in loaded], resolution, device=device, dtype=dtype)
        return images, torch.tensor([label for _, label in loaded], dtype=torch.int64, device=device)

    def note_broken(self, split: Split, broken: Mapping[str, str]) -> None:
        """Does nothing: no file of this data set can be broken."""
        return


class Drawn(WithoutFiles, Protocol):
    """A data set whose images are drawn at the resolution."""

    mean_and_deviation: tuple[float, float]
    """Of every channel, for the normalisation; of values in 0-1."""

    def fit(self, image: Tensor, resolution: Resolution) -> Tensor:
        """The image itself, which was drawn at this resolution."""
        return image

    def finish(
        self,
        images: Sequence[Tensor] | Tensor,
        resolution: Resolution,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A normalised batch; see `LoadableData.finish`."""
        from longvis_bench.data.resize import finish

        mean, deviation = self.mean_and_deviation
        return finish(images, resolution, [mean] * 3, [deviation] * 3, device=device, dtype=dtype)
