"""Where things are kept that can be made again: converted and compiled models, decoded images."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns `EXFUSE_CACHE`, or `exfuse` in the user's cache."""
    own = os.environ.get("EXFUSE_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "exfuse").expanduser()
