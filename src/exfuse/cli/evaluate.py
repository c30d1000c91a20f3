"""`exfuse evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.atomic_io import free_name
from exfuse.cli.options import Flip, Model, NetworkEngine, NetworkPrecision, Scales, parse_scales
from exfuse.console import terminal
from exfuse.distributed import is_main_process
from exfuse.evaluation.evaluate import evaluate
from exfuse.evaluation.metrics import METRICS
from exfuse.evaluation.report import measures_table, scores_table
from exfuse.outputs.file import check_file, write_result

COMMAND = "exfuse evaluate"


def evaluate_command(
    model: Model,
    data: Annotated[Path, typer.Argument(help="A data set: a folder or a dataset file.")],
    split: Annotated[str, typer.Option(help="The split to score.")] = "val",
    scales: Scales = "1",
    flip: Flip = False,
    metrics: Annotated[
        str, typer.Option(help=f"Further metrics, separated by commas, or all: {', '.join(METRICS)}.")
    ] = "",
    engine: NetworkEngine = None,
    precision: NetworkPrecision = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file to write.  [default: evaluation_SPLIT.json, or a free name]"),
    ] = None,
) -> None:
    """Score a model on a whole split; prints a table and writes JSON with the protocol."""
    wanted = parse_metrics(metrics)
    target = output or free_name(Path(f"evaluation_{Path(split).name}.json"))
    check_file(target, COMMAND)
    console = terminal(quiet=not is_main_process())
    report = evaluate(
        model,
        data,
        split,
        scales=parse_scales(scales),
        flip=flip,
        metrics=wanted,
        engine=engine,
        precision=precision,
        console=console,
    )
    if is_main_process():
        console.print(scores_table(report))
        if wanted:
            console.print(measures_table(report))
        written = write_result(target, COMMAND, report.to_json())
        console.print(f"protocol and counts  {written}", soft_wrap=True)


def parse_metrics(text: str) -> tuple[str, ...]:
    """Reads names of `METRICS` separated by commas, or "all"; `evaluate` refuses unknown ones."""
    return tuple(METRICS) if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())
