"""Draw docs/lookup.png: three held-out scenes of `lookup` at 256 px, side by side.

python scripts/lookup_picture.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from longvis_bench.data.lookup import Lookup

PICTURE = Path(__file__).parent.parent / "docs" / "lookup.png"
SCENES, RESOLUTION, GAP, COLOURS = 3, 256, 8, 96


def picture() -> Image.Image:
    """The scenes on white; a palette keeps the file small."""
    width = SCENES * (RESOLUTION + GAP) - GAP
    sheet = torch.full((3, RESOLUTION, width), 255, dtype=torch.uint8)
    for index in range(SCENES):
        left = index * (RESOLUTION + GAP)
        sheet[:, :, left : left + RESOLUTION] = Lookup().load("val", index, RESOLUTION)[0]
    image = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    return image.quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    picture().save(PICTURE, optimize=True)
