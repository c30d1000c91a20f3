"""`exfuse doctor`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exfuse.console import progress_bar, terminal
from exfuse.data.doctor import find_shared, open_leniently, validate
from exfuse.errors import ConfigError, brief
from exfuse.outputs.file import check_file, write_result

SHOWN = 20
COMMAND = "exfuse doctor"


def doctor_command(
    data: Annotated[Path, typer.Argument(help="A data set: a folder or a dataset file.")],
    splits: Annotated[str, typer.Option(help="Splits to check, separated by commas.")] = "train,val",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for all issues.  [default: none]")
    ] = None,
) -> None:
    """Check a data set for errors before training.

    Every file of the splits is read. The exit code is 1 if an issue would stop training.
    """
    console = terminal()
    names = [split.strip() for split in splits.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"--splits {brief(splits)}: name each split once, separated by commas")
    if output is not None:
        check_file(output, COMMAND)
    opened = [open_leniently(data, name) for name in names]
    with progress_bar(console) as bar:
        shared = find_shared([dataset for dataset, _ in opened])
        task = bar.add_task("checking", total=sum(len(dataset) for dataset, _ in opened))
        results = [
            validate(dataset, (*missing, *also), lambda: bar.advance(task))
            for (dataset, missing), also in zip(opened, shared, strict=True)
        ]
    for result in results:
        summary = f"{result.split}: {result.images} images, {result.errors} errors"
        console.print(summary, soft_wrap=True)
        table = Table("", "file", "issue")
        for issue in result.issues[:SHOWN]:
            table.add_row(issue.severity, Path(issue.file).name, issue.message)
        if len(result.issues) > SHOWN:
            table.add_row("", "", f"and {len(result.issues) - SHOWN} more; use --output for all of them")
        if result.issues:
            console.print(table)
    if output is not None:
        write_result(output, COMMAND, {"splits": [result.to_json() for result in results]})
    if any(result.errors for result in results):
        raise typer.Exit(1)
