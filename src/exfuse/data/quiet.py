"""Keeps Pillow and its libraries from writing to the terminal of a program whose own errors say what is wrong."""

import ctypes
import logging
import warnings
from contextlib import suppress

from PIL import _imaging


def silence_pillow() -> None:
    """Silences, in this process and for good, what Pillow and libtiff print about broken files.

    It is for the command line, which owns its process: as a library, this package leaves such settings alone.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # libtiff prints to the file descriptor itself. It is found among the libraries that Pillow's own was linked with;
    # where it is a part of that one, as on Windows, it stays as loud as it is.
    with suppress(OSError, AttributeError):
        libraries = ctypes.CDLL(_imaging.__file__)
        libraries.TIFFSetErrorHandler(None)
        libraries.TIFFSetWarningHandler(None)
