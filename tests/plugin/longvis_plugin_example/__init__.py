"""A plug-in: the package's folder holds the card, this module the model."""

from torch import nn


def build(*, resolution, num_classes, in_chans=3, width=8):
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 16, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
