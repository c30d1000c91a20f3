"""`exfuse models`."""

from typing import Annotated

import typer
from rich.table import Table

from exfuse.console import terminal
from exfuse.models.exfuse import MAX_CLASSES
from exfuse.models.registry import describe_models


def models_command(
    classes: Annotated[int, typer.Option(min=2, max=MAX_CLASSES, help="Number of classes; 21 is PASCAL VOC.")] = 21,
) -> None:
    """List the named models with their parameters and multiply-adds for one 512 x 512 image."""
    table = Table("model", title=f"{classes} classes, 512 x 512, paper decoder")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in describe_models(classes):
        table.add_row(row.name, f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e9:.2f} G")
    terminal().print(table)
