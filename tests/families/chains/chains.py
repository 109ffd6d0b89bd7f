"""Linear layers without bias, one after another, on the image's pixels as a vector."""

from itertools import pairwise

from torch import nn


class Chain(nn.Module):
    def __init__(self, features, width, depth, num_classes):
        super().__init__()
        widths = [features, *[width] * depth]
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in pairwise(widths)])
        self.head = nn.Linear(width, num_classes, bias=False)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build(*, resolution, num_classes, in_chans=3, width, depth):
    return Chain(in_chans * resolution**2, width, depth, num_classes)
