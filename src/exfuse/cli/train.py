"""`exfuse train`."""

from exfuse.cli.options import Overrides, Recipe, Resume
from exfuse.console import terminal
from exfuse.distributed import is_main_process
from exfuse.evaluation.report import scores_table
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train


def train_command(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a network on labelled images.

    Under torchrun, each batch is divided among the processes.
    """
    config = load_config(recipe, overrides or [])
    console = terminal(quiet=not is_main_process())
    report = train(config, resume, console)
    console.print(scores_table(report))
    for label, name in (("report", "report.html"), ("model", "model")):
        console.print(f"{label:<6}  {config.output / name}", soft_wrap=True)
