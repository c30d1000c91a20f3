"""`exfuse checkpoint`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.console import terminal
from exfuse.manifest import verify_folder
from exfuse.training.checkpoint import has_checkpoint, verify_latest

app = typer.Typer(help="Check checkpoints.", no_args_is_help=True)


@app.callback()
def checkpoint() -> None:
    """Check checkpoints."""


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="A run folder, its checkpoints folder, or one checkpoint.")],
) -> None:
    """Check that no file of a checkpoint has changed since it was written."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if has_checkpoint(folder):
        folder, files = verify_latest(folder)
    else:
        files = verify_folder(folder)
    size = sum(digest.size for digest in files.values())
    text = f"{folder}: {len(files)} files, {size:,} bytes, all unchanged"
    terminal().print(text, soft_wrap=True)
