"""`exfuse weights`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.console import terminal
from exfuse.models.storage.import_weights import import_weights
from exfuse.outputs.file import check_file

app = typer.Typer(help="Import pre-trained weights.", no_args_is_help=True)


@app.callback()
def weights() -> None:
    """Import pre-trained weights."""


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A .pth file with the weights of a ResNet or ResNeXt classifier.")],
    backbone: Annotated[str, typer.Option(help="The backbone of these weights: resnet50, resnext101, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
) -> None:
    """Convert a .pth file to a .safetensors file for model.backbone_weights.

    A .pth file is a pickle and can contain code. It is read in a separate process with resource limits, and refused if
    it contains anything other than tensors and plain containers.
    """
    check_file(output, "exfuse weights import")
    report = import_weights(source, backbone, output)
    console = terminal()
    left = f"; ignored: {', '.join(report.left[:5])}{' ...' if len(report.left) > 5 else ''}" if report.left else ""
    console.print(f"{len(report.taken)} tensors imported{left}", soft_wrap=True)
    console.print(f"written to {output}", soft_wrap=True)
