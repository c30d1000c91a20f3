"""Keeping Pillow and its libraries from printing about broken files, which our own errors report."""

import ctypes
import logging
import warnings
from contextlib import suppress

from PIL import _imaging


def silence_pillow() -> None:
    """Silences what Pillow and libtiff print about broken files, permanently in this process.

    Only the command line calls it, because it owns its process; as a library, this package leaves such settings alone.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # libtiff prints to the file descriptor itself. It is found among the libraries that Pillow's own one is linked to;
    # where it is linked statically, as on Windows, it is not silenced.
    with suppress(OSError, AttributeError):
        libraries = ctypes.CDLL(_imaging.__file__)
        libraries.TIFFSetErrorHandler(None)
        libraries.TIFFSetWarningHandler(None)
