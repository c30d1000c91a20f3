"""The command `exfuse`: registration of all commands, errors and exit codes. Each command has its own file."""

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from types import FrameType
from typing import Annotated

import typer

from exfuse.console import printable, terminal
from exfuse.contained import set_variables
from exfuse.data.quiet import silence_pillow
from exfuse.errors import ExFuseError
from exfuse.plugins import load_plugins
from exfuse.training.signals import Interrupted, handle_signals

# In the order of `exfuse --help`; each is a module of this package.
COMMANDS = (
    "train", "pretrain", "evaluate", "ablate", "compare", "predict", "export", "submit", "models", "recipes", "demo",
    "doctor",
)  # fmt: skip
GROUPS = ("data", "checkpoint", "weights")
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def build_app(names: Iterable[str] = (*COMMANDS, *GROUPS)) -> typer.Typer:
    """Returns the command line with the given commands, by default all; only their modules are imported."""
    app = typer.Typer(
        name="exfuse",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=HELP_OPTIONS,
    )
    app.callback()(_about)
    for name in names:
        module = import_module(f"exfuse.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, f"{name}_command"))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal().print(f"exfuse {version('exfuse')}")
        raise typer.Exit


def _about(
    wants_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """ExFuse semantic segmentation: train on your own images, measure honestly, ship."""


def main() -> None:
    """Runs the command line; errors in the user's input are printed in one line, without a traceback.

    The exit code is 0 on success, 1 after such an error, 2 for invalid arguments, 130 after Ctrl-C, 143 after SIGTERM
    and 129 after SIGHUP.
    """
    silence_pillow()
    set_variables()
    called = [name for name in sys.argv[1:2] if name in (*COMMANDS, *GROUPS)]
    _run(called)


def _run(called: list[str]) -> None:
    try:
        load_plugins()
        # Only the called command is imported: most import torch, which takes seconds, but predicting with an export
        # does not need it.
        app = build_app(called) if called else build_app()
        with _signals_end():
            app()
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is not installed, but this command needs it")
    except ExFuseError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except Interrupted as stop:
        from exfuse.distributed import is_main_process

        how = "" if sys.argv[1:2] in (["ablate"], ["demo"]) else " with --resume"
        if is_main_process():
            terminal(stderr=True).print(f"{stop}; to continue, run the same command{how}", soft_wrap=True)
        sys.exit(stop.exit_code)


def _fail(message: str) -> None:
    terminal(stderr=True).print(printable(f"error: {message}"), style="red", soft_wrap=True)
    sys.exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _signals_end() -> Iterator[None]:
    """Makes Ctrl-C, SIGTERM and SIGHUP raise `SystemExit` in the block, so that cleanup code runs."""
    before = handle_signals(_leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
