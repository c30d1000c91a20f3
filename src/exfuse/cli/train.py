"""`exfuse train`."""

from typing import Annotated

import typer
from rich.console import Console

from exfuse.distributed import is_first_process
from exfuse.evaluation.report import scores_table
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train


def train_command(
    recipe: Annotated[str, typer.Argument(help="A name from `exfuse recipes`, or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe: key=value, such as data.root=photos epochs=20."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's latest checkpoint.")] = False,
) -> None:
    """Train a network on labelled images.

    Under torchrun, several processes share each batch.
    """
    config = load_config(recipe, overrides or [])
    console = Console(quiet=not is_first_process())
    report = train(config, resume, console)
    console.print(scores_table(report))
    for label, name in (("report", "report.html"), ("model", "model")):
        console.print(f"{label:<6}  {config.output / name}", markup=False, highlight=False, soft_wrap=True)
