"""Label maps as pictures."""

import math
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from exfuse.data.classes import Color
from exfuse.data.samples import UInt8Array

LEGEND_ROW = 20  # pixels
LEGEND_GAP = 14
NAME_LENGTH = 40  # longest name that is drawn, in characters
JOINERS = "\u200c\u200d"  # format characters that names need, in Persian and in emoji


def one_line(text: str) -> str:
    """Returns an untrusted text as one line that cannot control a terminal, a page or the direction of the text.

    Each run of white space becomes one space. Control, format, private and unassigned characters and lone surrogates
    become U+FFFD.
    """
    joined = " ".join(text.split())
    return "".join(
        "\ufffd" if unicodedata.category(letter)[0] == "C" and letter not in JOINERS else letter for letter in joined
    )


def drawn_name(name: str) -> str:
    """Returns a name as drawn into a picture: on one line, truncated if it is long."""
    line = one_line(name)
    return line if len(line) <= NAME_LENGTH else line[: NAME_LENGTH - 1] + "…"


def colorize(labels: UInt8Array, palette: Sequence[Color]) -> UInt8Array:
    """Returns the labels `(H, W)` as colours, RGB uint8 `(H, W, 3)`; labels beyond the palette are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return np.asarray(table[labels])


def blend(image: UInt8Array, labels: UInt8Array, palette: Sequence[Color], opacity: float) -> Image.Image:
    """Blends the labels' colours into an image.

    Pixels whose colour is black stay unchanged: black is the colour of the background and of labels beyond the
    palette, and would only darken the photograph.

    Args:
        image: RGB uint8 `(H, W, 3)`.
        labels: uint8 `(H, W)`.
        palette: One RGB colour per class.
        opacity: Of the colours, 0 to 1.
    """
    colors = colorize(labels, palette)
    painted = np.where(colors.any(axis=-1, keepdims=True), colors, image)
    return Image.blend(Image.fromarray(image), Image.fromarray(painted), opacity)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """Returns the picture with rows of named colour patches below it.

    The canvas is as wide as the picture or the widest entry, whichever is wider. Black patches are drawn white, because
    `blend` does not draw black.
    """
    font = _font(13)
    names = [drawn_name(name) for name, _ in entries]
    widths = [LEGEND_ROW + math.ceil(font.getlength(name)) + LEGEND_GAP for name in names]
    start = LEGEND_GAP // 2
    width = max(picture.width, start + max(widths, default=0))
    places, x, y = [], start, 0
    for needed in widths:
        if x + needed > width:
            x, y = start, y + LEGEND_ROW
        places.append((x, y))
        x += needed
    canvas = Image.new("RGB", (width, picture.height + y + LEGEND_ROW + 4), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for name, (_, color), (x, y) in zip(names, entries, places, strict=True):
        top = picture.height + y + 4
        draw.rectangle((x, top, x + 13, top + 13), fill=color if any(color) else "white", outline="black")
        draw.text((x + 18, top - 2), name, fill="black", font=font)
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Matplotlib's font if installed, because Pillow's has few characters beyond ASCII."""
    package = find_spec("matplotlib")
    if package is not None and package.origin is not None:
        path = Path(package.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)
