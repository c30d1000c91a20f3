"""`exfuse weights`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from exfuse.models.foreign import import_weights

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
    report = import_weights(source, backbone, output)
    console = Console()
    left = f"; left: {', '.join(report.left[:5])}{' ...' if len(report.left) > 5 else ''}" if report.left else ""
    console.print(f"{len(report.taken)} tensors taken{left}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {output}", markup=False, highlight=False, soft_wrap=True)
