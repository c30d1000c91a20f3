"""`exfuse evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.atomic_io import free_name
from exfuse.cli.options import (
    Flip,
    Model,
    NetworkEngine,
    NetworkPrecision,
    Scales,
    parse_scales,
    reference_engine,
)
from exfuse.console import terminal
from exfuse.data.datasets import open_dataset
from exfuse.data.stats import compute_stats
from exfuse.distributed import process_group
from exfuse.errors import ConfigError, did_you_mean
from exfuse.evaluation.bootstrap import mean_iou_interval
from exfuse.evaluation.evaluate import EvaluationReport, check_classes, describe_protocol, score_split
from exfuse.evaluation.metrics import METRICS
from exfuse.evaluation.report import measures_table, scores_table
from exfuse.inference.tta import TestTimeAugmentation
from exfuse.outputs.file import check_file, write_result
from exfuse.predictor import Predictor

COMMAND = "exfuse evaluate"


def evaluate_command(
    model: Model,
    data: Annotated[Path, typer.Argument(help="A data set: a folder or a dataset file.")],
    split: Annotated[str, typer.Option(help="Which split to score.")] = "val",
    scales: Scales = "1",
    flip: Flip = False,
    metrics: Annotated[
        str, typer.Option(help=f"More to measure, separated by commas, or all: {', '.join(METRICS)}.")
    ] = "",
    engine: NetworkEngine = None,
    precision: NetworkPrecision = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where to write the JSON.  [default: evaluation_SPLIT.json, or a free name]"
        ),
    ] = None,
) -> None:
    """Score a model on a whole split: table, and JSON with the protocol."""
    wanted = parse_metrics(metrics)
    target = output or free_name(Path(f"evaluation_{Path(split).name}.json"))
    check_file(target, COMMAND)
    with process_group() as dist:
        console = terminal(quiet=not dist.is_main)
        predictor = Predictor.from_pretrained(
            model, reference_engine(model, engine), precision, TestTimeAugmentation(parse_scales(scales), flip)
        )
        dataset = open_dataset(data, split)
        check_classes(predictor.info, dataset)
        with console.status(f"checking the {len(dataset)} images of {split}"):
            stats = compute_stats(dataset)
        scores = score_split(predictor, dataset, dist, console, wanted)
        if dist.is_main:
            report = EvaluationReport(
                scores.matrix,
                dataset.classes.names,
                describe_protocol(predictor, dataset, stats.fingerprint) | {"model": model},
                mean_iou_interval(scores.of_images),
                {name: measure.result() for name, measure in scores.metrics.items()},
            )
            console.print(scores_table(report))
            if wanted:
                console.print(measures_table(report))
            written = write_result(target, COMMAND, report.to_json())
            console.print(f"protocol and counts  {written}", soft_wrap=True)


def parse_metrics(text: str) -> tuple[str, ...]:
    """Reads names of `METRICS` separated by commas, or "all".

    Raises:
        ConfigError: If one is unknown.
    """
    if text == "all":
        return tuple(METRICS)
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"--metrics {text}: there is no metric {name!r}; {did_you_mean(name, METRICS)}")
    return names
