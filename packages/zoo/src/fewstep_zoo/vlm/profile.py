"""Picture of the share of skipped pairs by layer, of text and of vision tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

ROW, COLUMN, EDGE = 26, 96, 70


def png(layers: Sequence[int], shares: Mapping[str, Sequence[float]]) -> bytes:
    """Draw layers down and groups of tokens across; the darker, the more of the pairs was skipped.

    Args:
        layers: their numbers.
        shares: by name of the group, the skipped share of each layer, in [0, 1].
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (EDGE + COLUMN * len(shares), ROW * (len(layers) + 1)), "white")
    pen = ImageDraw.Draw(image)
    for column, (name, values) in enumerate(shares.items()):
        left = EDGE + COLUMN * column
        pen.text((left + 8, 7), name, fill="black")
        for row, share in enumerate(values, 1):
            grey = round(255 - 205 * share)
            pen.rectangle((left, ROW * row, left + COLUMN - 2, ROW * (row + 1) - 2), fill=(grey, grey, 255))
            pen.text((left + 8, ROW * row + 7), f"{share:.0%}", fill="white" if share > 0.6 else "black")
    for row, layer in enumerate(layers, 1):
        pen.text((8, ROW * row + 7), f"layer {layer}", fill="black")
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
