"""`exfuse ablate`."""

import shlex
from typing import Annotated

import typer
from rich.table import Table

from exfuse.ablation.rows import REFERENCE
from exfuse.ablation.run import Ablation, run_ablation
from exfuse.ablation.table import published_text, table_lines, write_tables
from exfuse.cli.options import Overrides
from exfuse.console import terminal
from exfuse.outputs.folder import claim_folder
from exfuse.training.recipes import load_ablation_config


def ablate_command(
    recipe: Annotated[str, typer.Argument(help="paper, or a YAML file made from `exfuse recipes paper`.")],
    overrides: Overrides = None,
) -> None:
    """Run the paper's ablation on any data set: its Tables 3 and 4 and each part alone, with error bars.

    Each row is trained once per seed. Run the same command again to continue: finished trials are skipped, and an
    interrupted one is resumed.
    """
    config, console = load_ablation_config(recipe, overrides or []), terminal()
    command = shlex.join(["exfuse", "ablate", recipe, *(overrides or [])])
    with claim_folder(config.output, "exfuse ablate", shared=True) as folder:
        for ablation in run_ablation(config, console):
            console.print(results_table(ablation))
            write_tables(ablation, folder, command)
    console.print(f"tables and figure  {config.output}/ablation.*", soft_wrap=True)


def results_table(ablation: Ablation) -> Table:
    """Returns the results so far as a table for the terminal."""
    table = Table(title=ablation.split)
    for column in ("row", "mIoU", "published, VOC val", f"against the {REFERENCE}"):
        table.add_column(column)
    for line in table_lines(ablation):
        table.add_row(line.name, f"{line.mean:.2f}", published_text(line), line.verdict())
    return table
