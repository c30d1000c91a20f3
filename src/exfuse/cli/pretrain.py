"""`exfuse pretrain`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from exfuse.distributed import is_first_process
from exfuse.training.classification import pretrain
from exfuse.training.recipes import load_pretraining_config


def pretrain_command(
    recipe: Annotated[str, typer.Argument(help="A name from `exfuse recipes`, or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe: key=value, such as data.root=photos epochs=20."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's latest checkpoint.")] = False,
) -> None:
    """Pre-train a backbone on classification, one folder a class, with semantic supervision or without.

    `exfuse train ... model.backbone_weights=RUN/backbone` begins with what it leaves. Under torchrun, several
    processes share each batch.
    """
    config = load_pretraining_config(recipe, overrides or [])
    console = Console(quiet=not is_first_process())
    table = Table(title=f"best on {config.data.val_split}")
    for name in ("head", "top-1", "top-5"):
        table.add_column(name, justify="left" if name == "head" else "right")
    for row in pretrain(config, resume, console):
        table.add_row(row.head, f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}")
    console.print(table)
    console.print(f"backbone  {config.output / 'backbone'}", markup=False, highlight=False, soft_wrap=True)
