"""`exfuse pretrain`."""

from rich.table import Table

from exfuse.cli.options import Overrides, Recipe, Resume
from exfuse.console import terminal
from exfuse.distributed import is_main_process
from exfuse.training.classification import pretrain
from exfuse.training.recipes import load_pretraining_config


def pretrain_command(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Pre-train a backbone on classification (one folder per class), with or without semantic supervision.

    Use the result with `exfuse train ... model.backbone_weights=RUN/backbone`. Under torchrun, each batch is divided
    among the processes.
    """
    config = load_pretraining_config(recipe, overrides or [])
    console = terminal(quiet=not is_main_process())
    table = Table(title=f"best on {config.data.val_split}, in %")
    for name in ("head", "top-1", "top-5"):
        table.add_column(name, justify="left" if name == "head" else "right")
    for row in pretrain(config, resume, console):
        table.add_row(row.head, f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}")
    console.print(table)
    console.print(f"backbone  {config.output / 'backbone'}", soft_wrap=True)
