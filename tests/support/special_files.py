"""What is in the place of a file and must not be read: it never ends."""

import os
from pathlib import Path


def be_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def be_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")
