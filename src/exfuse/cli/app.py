"""The command `exfuse`: one file a command, and here what they share."""

import sys

import typer
from rich.console import Console

from exfuse.cli import (
    ablate,
    checkpoint,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    models,
    predict,
    pretrain,
    recipes,
    submit,
    train,
    weights,
)
from exfuse.distributed import is_first_process
from exfuse.errors import ExFuseError
from exfuse.training.signals import Interrupted

app = typer.Typer(
    name="exfuse",
    help="ExFuse semantic segmentation: train on your own images, measure honestly, ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train_command)
app.command("pretrain")(pretrain.pretrain_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("ablate")(ablate.ablate_command)
app.command("compare")(compare.compare_command)
app.command("predict")(predict.predict_command)
app.command("export")(export.export_command)
app.command("submit")(submit.submit_command)
app.command("models")(models.models_command)
app.command("recipes")(recipes.recipes_command)
app.command("demo")(demo.demo_command)
app.command("doctor")(doctor.doctor_command)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Runs the command line; errors about the user's input are one line, without a traceback.

    The exit code is 0, 1 after such an error, 2 for a wrong call, 130 after Ctrl-C and 143 after SIGTERM.
    """
    errors = Console(stderr=True)
    try:
        app()
    except ExFuseError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        errors.print(
            f"error: {error.filename or ''}: {error.strerror or error}", style="red", markup=False, soft_wrap=True
        )
        sys.exit(1)
    except Interrupted as stop:
        how = "" if sys.argv[1:2] in (["ablate"], ["demo"]) else " with --resume"
        if is_first_process():
            errors.print(f"{stop}; to go on, run the same command{how}", highlight=False)
        sys.exit(stop.exit_code)
