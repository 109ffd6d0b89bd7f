"""Networks that combine local features only, to show what `lookup` needs beside them (docs/lookup.md).

`mean`, `maximum` and `mlp` see 45 px, less than a disc of 64 px and never two; `small` is a plain network of
convolutions whose last features see the whole canvas of 256 px.  They are trained like any model:
`python scripts/lookup_runs.py --models scripts/lookup_bags.py:mean ...`.
"""

from __future__ import annotations

from torch import Tensor, nn

LOCAL = ((12, 5, 2), (24, 5, 2), (24, 5, 2), (48, 3, 1))
"""Channels, kernel and stride of each convolution: the last features see 45 px."""
SMALL = ((16, 5, 2), (32, 5, 2), (48, 5, 2), (64, 5, 2), (64, 5, 2), (64, 5, 2))
"""The last features see 253 px."""


def mean(*, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A sum of local scores."""
    return Bag(LOCAL, nn.Linear(LOCAL[-1][0], num_classes), in_chans=in_chans)


def maximum(*, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A linear function of the largest value of each local feature."""
    return Bag(LOCAL, nn.Linear(LOCAL[-1][0], num_classes), in_chans=in_chans, largest=True)


def mlp(*, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
    """A nonlinear function of the means of local features."""
    head = nn.Sequential(nn.Linear(LOCAL[-1][0], 64), nn.ReLU(), nn.Linear(64, num_classes))
    return Bag(LOCAL, head, in_chans=in_chans)


def small(*, resolution: int, num_classes: int, in_chans: int = 3) -> nn.Module:
    """Convolutions from edge to edge of 256 px, then a mean."""
    return Bag(SMALL, nn.Linear(SMALL[-1][0], num_classes), in_chans=in_chans)


class Bag(nn.Module):
    """Convolutions, one value per feature over all positions, and a head.

    Arguments:
        layers: channels, kernel and stride of each convolution.
        head: from the last channels to logits.
        in_chans: channels of the images.
        largest: take the maximum over positions in place of the mean.
    """

    def __init__(
        self,
        layers: tuple[tuple[int, int, int], ...],
        head: nn.Module,
        *,
        in_chans: int,
        largest: bool = False,
    ) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for channels, kernel, stride in layers:
            convolution = nn.Conv2d(in_chans, channels, kernel, stride, kernel // 2, bias=False)
            steps += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
            in_chans = channels
        self.features, self.head, self.largest = nn.Sequential(*steps), head, largest

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) -> logits (batch, classes)."""
        maps = self.features(images)
        pooled = maps.amax((2, 3)) if self.largest else maps.mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits
