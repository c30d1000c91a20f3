"""Label maps as pictures."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from exfuse.data.classes import Color
from exfuse.data.samples import UInt8Array

LEGEND_ROW = 20  # pixels
LEGEND_GAP = 14


def colorize(labels: UInt8Array, palette: Sequence[Color]) -> UInt8Array:
    """Returns the labels `(H, W)` in their colours, RGB uint8 `(H, W, 3)`; labels beyond the palette are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return np.asarray(table[labels])


def blend(image: UInt8Array, labels: UInt8Array, palette: Sequence[Color], opacity: float) -> Image.Image:
    """Lays the labels' colours over an image.

    Args:
        image: RGB uint8 `(H, W, 3)`.
        labels: uint8 `(H, W)`.
        palette: One RGB colour a class.
        opacity: Of the colours, 0 to 1.
    """
    return Image.blend(Image.fromarray(image), Image.fromarray(colorize(labels, palette)), opacity)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """Returns the picture with named colour patches in rows below it, as many rows as their width needs."""
    font = ImageFont.load_default(size=13)
    places, x, y = [], LEGEND_GAP // 2, 0
    for name, _ in entries:
        width = LEGEND_ROW + int(font.getlength(name)) + LEGEND_GAP
        if x + width > picture.width and x > LEGEND_GAP:
            x, y = LEGEND_GAP // 2, y + LEGEND_ROW
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (picture.width, picture.height + y + LEGEND_ROW + 4), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        top = picture.height + y + 4
        draw.rectangle((x, top, x + 13, top + 13), fill=color, outline="black")
        draw.text((x + 18, top - 2), name, fill="black", font=font)
    return canvas
