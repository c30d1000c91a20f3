"""The command `exfuse`: one file a command, and here what they share."""

import sys
from collections.abc import Iterable
from importlib import import_module

import typer
from rich.console import Console

from exfuse.errors import ExFuseError
from exfuse.training.signals import Interrupted

# In the order of `exfuse --help`; each is a file here.
COMMANDS = (
    "train", "pretrain", "evaluate", "ablate", "compare", "predict", "export", "submit", "models", "recipes", "demo",
    "doctor",
)  # fmt: skip
GROUPS = ("data", "checkpoint", "weights")


def build_app(names: Iterable[str] = (*COMMANDS, *GROUPS)) -> typer.Typer:
    """Returns the command line with some of the commands, whose files are imported; by default with all of them."""
    app = typer.Typer(name="exfuse", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_about)
    for name in names:
        module = import_module(f"exfuse.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, f"{name}_command"))
    return app


def _about() -> None:
    """ExFuse semantic segmentation: train on your own images, measure honestly, ship."""


def main() -> None:
    """Runs the command line; errors about the user's input are one line, without a traceback.

    The exit code is 0, 1 after such an error, 2 for a wrong call, 130 after Ctrl-C and 143 after SIGTERM.
    """
    errors = Console(stderr=True)
    called = [name for name in sys.argv[1:2] if name in (*COMMANDS, *GROUPS)]
    try:
        # Most commands bring torch, which takes seconds and which predicting with an export does without.
        app = build_app(called) if called else build_app()
        app()
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed, which this command needs"
        errors.print(f"error: {missing}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:  # while a command is imported; later it is dealt with elsewhere
        sys.exit(130)
    except ExFuseError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        errors.print(
            f"error: {error.filename or ''}: {error.strerror or error}", style="red", markup=False, soft_wrap=True
        )
        sys.exit(1)
    except Interrupted as stop:
        from exfuse.distributed import is_first_process

        how = "" if sys.argv[1:2] in (["ablate"], ["demo"]) else " with --resume"
        if is_first_process():
            errors.print(f"{stop}; to go on, run the same command{how}", highlight=False)
        sys.exit(stop.exit_code)
