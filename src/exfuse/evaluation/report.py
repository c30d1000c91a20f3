"""Scores as a table for the terminal, a model card, and an HTML page with curves and examples."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from rich.table import Table
from rich.text import Text

from exfuse.data.datasets import SegmentationDataset
from exfuse.data.samples import spread
from exfuse.drawing import colorize, drawn_name, one_line
from exfuse.evaluation.bootstrap import LEVEL
from exfuse.evaluation.evaluate import EvaluationReport
from exfuse.models.options import changed_options
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.predictor import Predictor

EXAMPLES = 6


def scores_table(report: EvaluationReport) -> Table:
    """Returns the per-class table for a terminal."""
    protocol = report.protocol
    scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
    flip = " with flip" if protocol["flip"] else ""
    captions = [f"mean IoU: {protocol['mean_iou']}"]
    if report.absent:
        captions.append(f"absent, not in the means: {', '.join(report.absent)}")
    table = Table(
        title=_literal(f"{protocol['split']}: {protocol['images']} images, scales {scales}{flip}", "table.title"),
        caption=Text("\n").join(_literal(line, "table.caption") for line in captions),
        show_footer=True,
    )
    matrix = report.matrix
    table.add_column("class", footer="mean")
    table.add_column("IoU", justify="right", footer=_percent(matrix.mean_iou()))
    table.add_column("accuracy", justify="right", footer=_percent(matrix.mean_accuracy()))
    for name, iou, accuracy in zip(report.class_names, matrix.iou(), matrix.accuracy(), strict=True):
        table.add_row(_literal(name), _percent(iou), _percent(accuracy))
    table.add_section()
    if report.interval is not None:
        low, high = _percent(report.interval.low), _percent(report.interval.high)
        table.add_row(f"{100 * LEVEL:g} % interval of the mean", f"{low} - {high}", "")
    table.add_row("pixel accuracy", "", _percent(matrix.pixel_accuracy()))
    table.add_row("frequency-weighted IoU", _percent(matrix.frequency_weighted_iou()), "")
    return table


def measures_table(report: EvaluationReport) -> Table:
    """Returns the further metrics for a terminal, one number per line, without per-class and per-bin values."""
    table = Table("metric", title="further metrics")
    table.add_column("%", justify="right")
    for name, result in report.metrics.items():
        for key, value in result.items():
            if isinstance(value, dict):
                for part, score in value.items():
                    table.add_row(f"{name} {key} {part}", _percent(score))
            elif value is None or isinstance(value, float):
                table.add_row(f"{name} {key}", _percent(value))
    return table


def model_card(info: ModelMetadata, report: EvaluationReport, chosen: bool) -> str:
    """Returns a model card in Markdown: architecture, usage, scores and protocol.

    Args:
        info: Metadata of the model.
        report: Its scores.
        chosen: Whether it was chosen as the best of a run on this split.
    """
    matrix, protocol = report.matrix, report.protocol
    choice = (
        "The model was selected as the best of its run on this split, so these scores are slightly optimistic."
        if chosen
        else "The model is the last of its run."
    )
    switches = (
        ", ".join(f"{key}={value}" for key, value in changed_options(info.name, info.options).items())
        or "default options"
    )
    rows = [
        f"| {escape_markdown(name)} | {_percent(iou)} | {_percent(accuracy)} |"
        for name, iou, accuracy in zip(report.class_names, matrix.iou(), matrix.accuracy(), strict=True)
    ]
    measured = [f"| {name} | {escape_markdown(_listed(value))} |" for name, value in protocol.items()]
    return "\n".join(
        [
            "---",
            "library_name: exfuse",
            "pipeline_tag: image-segmentation",
            "---",
            f"# {info.name}, {len(info.class_names)} classes",
            "",
            f"A semantic segmentation network trained with ExFuse. Architecture: `{info.name}` ({switches}).",
            "",
            "```python",
            "import exfuse",
            'predictor = exfuse.Predictor.from_pretrained("THIS_FOLDER")',
            'result = predictor("photo.jpg")',
            "```",
            "",
            f"## Scores on {escape_markdown(protocol['split'])}",
            "",
            f"Mean IoU {_percent(matrix.mean_iou())}, pixel accuracy {_percent(matrix.pixel_accuracy())}. {choice}",
            "",
            "| class | IoU | accuracy |",
            "|---|---|---|",
            *rows,
            "",
            "## Protocol",
            "",
            "| | |",
            "|---|---|",
            *measured,
            "",
        ]
    )


def run_report(folder: Path, dataset: SegmentationDataset, records: Sequence[dict[str, Any]]) -> str:
    """Returns an HTML page about a finished run: scores, curves, confusion matrix, examples and protocol.

    Args:
        folder: The run folder, with the best model in `model`.
        dataset: The validation split, for the examples.
        records: The records of the run; see `RunLog`.
    """
    predictor = Predictor.from_pretrained(folder / "model", engine="torch")
    report = EvaluationReport.from_json(predictor.info.metrics)
    interval = report.interval
    between = f" ({_percent(interval.low)} to {_percent(interval.high)} at {100 * LEVEL:g} %)" if interval else ""
    parts = [
        f"<h1>{_escape(folder.name)}</h1>",
        f"<p>{_escape(predictor.info.name)}: mean IoU <b>{_percent(report.matrix.mean_iou())}</b>{between}, "
        f"pixel accuracy {_percent(report.matrix.pixel_accuracy())} on {_escape(dataset.split)} "
        f"({len(dataset)} images), after step {report.protocol['step']}.</p>",
        "<h2>Curves</h2>",
        _embed(_png(_curves(records))),
        "<h2>Classes</h2>",
        _html_table(
            ("class", "IoU", "accuracy", "pixels"),
            (
                (row["name"], _percent(row["iou"]), _percent(row["accuracy"]), f"{row['pixels']:,}")
                for row in report.to_json()["classes"]
            ),
        ),
        "<h2>Confusion</h2>",
        "<p>Percentage of the pixels of each true class (row) that was predicted as each class (column).</p>",
        _embed(_png(_confusion(report))),
        "<h2>Examples: image, ground truth, prediction</h2>",
        *(_embed(_jpeg(_example(predictor, dataset, index))) for index in spread(len(dataset), EXAMPLES)),
        "<h2>Protocol</h2>",
        _html_table(("", ""), ((name, _listed(value)) for name, value in report.protocol.items())),
    ]
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}"
        "td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left;overflow-wrap:anywhere}"
        "img{max-width:100%;display:block;margin:.6rem 0}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_escape(folder.name)}</title>'
        f"<style>{style}</style></head><body>{''.join(parts)}</body></html>"
    )


def _curves(records: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score = figure.subplots(1, 2)
    for axes, kind, value in ((loss, "train", "loss"), (score, "val", "mean_iou")):
        chosen = [record for record in records if record["kind"] == kind and record[value] is not None]
        axes.plot([r["epoch"] for r in chosen], [r[value] for r in chosen], marker="." if kind == "val" else "")
        axes.set(xlabel="epoch", title=f"{kind} {value.replace('_', ' ')}")
        axes.grid(alpha=0.3)
    return figure


def _confusion(report: EvaluationReport) -> Figure:
    counts = report.matrix.counts.numpy().astype(np.float64)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.34 * len(counts)
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    names = [_drawable(name) for name in report.class_names]
    axes.set_xticks(range(len(counts)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(counts)), names, parse_math=False)
    for row, column in zip(*np.nonzero(fractions >= 0.05), strict=True):
        fraction = fractions[row, column]
        color = "white" if fraction > 0.5 else "black"
        axes.text(column, row, f"{100 * fraction:.0f}", ha="center", va="center", fontsize=7, color=color)
    return figure


def _example(predictor: Predictor, dataset: SegmentationDataset, index: int) -> Image.Image:
    sample = dataset[index]
    prediction = predictor(sample.image)
    truth = colorize(sample.mask, dataset.classes.palette)
    predicted = colorize(prediction.labels, dataset.classes.palette)
    return Image.fromarray(np.concatenate([sample.image, truth, predicted], axis=1))


def _png(figure: Figure) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    font_manager._get_font.cache_clear()  # type: ignore[attr-defined]  # the cache keeps font files open, per thread
    return "png", buffer.getvalue()


def _jpeg(image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "jpeg", buffer.getvalue()


def _embed(picture: tuple[str, bytes]) -> str:
    kind, content = picture
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    cells = (
        "<tr>" + "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for line, tag in zip(lines, ["th", *["td"] * (len(lines) - 1)], strict=True)
    )
    return f"<table>{''.join(cells)}</table>"


def _literal(text: str, style: str = "") -> Text:
    """Returns text for a terminal without interpreting markup, emoji names or control characters."""
    return Text(one_line(text), style)


def escape_markdown(text: str) -> str:
    """Returns untrusted text as one line of literal Markdown: HTML, links, table cells and formulas are escaped."""
    return re.sub(r"([\\`*_\[\]|~$#@]|:(?=//)|(?<=www)\.)", r"\\\1", html.escape(one_line(text), quote=False))


def _escape(text: str) -> str:
    return html.escape(one_line(text))


def _drawable(name: str) -> str:
    """Returns a name for a figure: short, on one line, with a box for each letter that the font lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(letter if font.get_char_index(ord(letter)) else "\u25a1" for letter in drawn_name(name))


def _listed(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {content}" for name, content in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"
