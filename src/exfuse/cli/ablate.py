"""`exfuse ablate`."""

import shlex
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from exfuse.ablation.run import run_ablation
from exfuse.ablation.table import table_lines, write_tables
from exfuse.cli.options import Overrides
from exfuse.training.recipes import load_ablation_config


def ablate_command(
    recipe: Annotated[str, typer.Argument(help="paper, or a YAML file made from `exfuse recipes paper`.")],
    overrides: Overrides = None,
) -> None:
    """Run the paper's ablation on any data set: each part alone against a baseline of the same width, with error bars.

    Every cell is a run of its own; the same command again skips those that are done and goes on with one that was cut
    off.
    """
    config, console = load_ablation_config(recipe, overrides or []), Console()
    for ablation in run_ablation(config, console):
        write_tables(ablation, config.output, shlex.join(["exfuse", "ablate", recipe, *(overrides or [])]))
    table = Table(title=ablation.split)
    for column in ("row", "mIoU", "against the wide baseline"):
        table.add_column(column)
    for line in table_lines(ablation):
        table.add_row(line.name, f"{line.mean:.2f}", line.verdict())
    console.print(table)
    console.print(f"tables and figure  {config.output}/ablation.*", markup=False, highlight=False, soft_wrap=True)
