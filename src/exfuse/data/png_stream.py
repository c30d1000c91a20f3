"""Writing a palette PNG strip by strip, so that a large mask is never in memory as a whole."""

import struct
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from exfuse.data.classes import Color
from exfuse.data.samples import UInt8Array

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE_TYPE = 3


class Sink(Protocol):
    """A destination of bytes."""

    def write(self, content: bytes, /) -> int:
        """Writes bytes and returns how many."""


class PngStreamWriter:
    """Writes an 8-bit palette PNG (ISO/IEC 15948) from top to bottom.

    Args:
        file: The destination.
        size: Width and height, in pixels.
        palette: One RGB colour per label.
    """

    def __init__(self, file: Sink, size: tuple[int, int], palette: Sequence[Color]) -> None:
        self.width, self.height = size
        self.rows = 0
        self._file = file
        self._compressor = zlib.compressobj(6)
        self._file.write(_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", self.width, self.height, 8, _PALETTE_TYPE, 0, 0, 0))
        self._chunk(b"PLTE", bytes(value for color in palette for value in color))

    def write(self, labels: UInt8Array) -> None:
        """Appends rows of labels, uint8 `(h, W)`.

        Raises:
            ValueError: If they have another width, or there are too many.
        """
        if labels.shape[1] != self.width or self.rows + len(labels) > self.height:
            raise ValueError(
                f"{labels.shape} does not fit the remaining {self.height - self.rows} rows of {self.width}"
            )
        # Each row begins with its filter type; labels need none, which is 0.
        filtered = np.pad(labels, ((0, 0), (1, 0)))
        self._chunk(b"IDAT", self._compressor.compress(filtered.tobytes()))
        self.rows += len(labels)

    def finish(self) -> None:
        """Completes the file.

        Raises:
            ValueError: If rows are missing.
        """
        if self.rows != self.height:
            raise ValueError(f"{self.rows} of {self.height} rows were written")
        self._chunk(b"IDAT", self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            self._file.write(struct.pack(">I", len(content)) + kind + content)
            self._file.write(struct.pack(">I", zlib.crc32(kind + content)))
