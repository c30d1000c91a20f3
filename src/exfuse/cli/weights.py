"""`exfuse weights`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.console import terminal
from exfuse.models.storage.import_weights import import_weights
from exfuse.outputs.file import check_file

app = typer.Typer(help="Take other people's weights.", no_args_is_help=True)


@app.callback()
def weights() -> None:
    """Take other people's weights."""


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A .pth file with the weights of a ResNet or ResNeXt classifier.")],
    backbone: Annotated[str, typer.Option(help="Which backbone they are of: resnet50, resnext101, ...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
) -> None:
    """Turn a .pth file into weights for model.backbone_weights.

    Such a file is a pickle, which may hold more than weights: it is read in a process of its own, with limits, and
    anything but tensors and plain containers is refused.
    """
    check_file(output, "exfuse weights import")
    report = import_weights(source, backbone, output)
    console = terminal()
    left = f"; left: {', '.join(report.left[:5])}{' ...' if len(report.left) > 5 else ''}" if report.left else ""
    console.print(f"{len(report.taken)} tensors taken{left}", soft_wrap=True)
    console.print(f"written to {output}", soft_wrap=True)
