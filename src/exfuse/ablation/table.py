"""The results of an ablation as Markdown, CSV and a figure."""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exfuse.ablation.rows import PAPER, REFERENCE
from exfuse.ablation.run import Ablation
from exfuse.evaluation.bootstrap import LEVEL, Interval, difference_interval
from exfuse.evaluation.report import escape_markdown
from exfuse.outputs.folder import OutputFolder

COLUMNS = (
    "row", "mIoU", "published mIoU", "spread", f"against the {REFERENCE}", "low", "high", "parameters (M)",
    "multiply-adds (G)", "s/step",
)  # fmt: skip
PUBLISHED = {row.name: row.published for row in PAPER}
SOURCE = (
    "Published: the paper's mIoU on PASCAL VOC 2012 val, from its Tables 3 and 4. The paper trained differently and, "
    "unless this is VOC, on other data, so compare differences between rows, not scores."
)
NOT_DISTINGUISHABLE = "not distinguishable"
# One seed gives no estimate of the variance; two leave one degree of freedom, for which Student's t is 12.7.
SEEDS_FOR_A_VERDICT = 3


@dataclass(frozen=True)
class Line:
    """A row of the finished table; scores in points.

    Attributes:
        name: Name of the row.
        mean: Mean mIoU over the seeds.
        published: The paper's mIoU on VOC 2012 val, or None if its tables have no such row.
        spread: Standard deviation over the seeds; nan for one seed.
        difference: Difference from the reference, mean over the seeds.
        interval: Interval of the difference; see `difference_interval`.
        seeds: Number of runs.
        parameters: Parameters of the network.
        multiply_adds: Multiply-adds for one image of the crop's size.
        seconds: Median seconds of a training step, mean over the seeds.
    """

    name: str
    mean: float
    published: float | None
    spread: float
    difference: float
    interval: Interval
    seeds: int
    parameters: int
    multiply_adds: int
    seconds: float

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval excludes zero; None if there are too few seeds for a verdict."""
        return None if self.seeds < SEEDS_FOR_A_VERDICT else not self.interval.contains(0.0)

    def verdict(self) -> str:
        """Returns the difference with its interval, marked if it is not distinguishable from zero."""
        if self.name == REFERENCE:
            return "-"
        difference = f"{self.difference:+.2f} ({self.interval.low:+.2f} to {self.interval.high:+.2f})"
        return f"{difference}, {NOT_DISTINGUISHABLE}" if self.distinguishable is False else difference


def table_lines(ablation: Ablation) -> tuple[Line, ...]:
    """Returns the lines of the table, one per row of the ablation."""
    reference = ablation.trials[REFERENCE]
    reference_counts = np.stack([trial.per_image for trial in reference])
    lines = []
    for name, trials in ablation.trials.items():
        scores = np.array([100 * trial.mean_iou for trial in trials])
        low_high = difference_interval(reference_counts, np.stack([trial.per_image for trial in trials]))
        lines.append(
            Line(
                name=name,
                mean=float(scores.mean()),
                published=PUBLISHED[name],
                spread=float(scores.std(ddof=1)) if len(scores) > 1 else math.nan,
                difference=float(scores.mean() - np.mean([100 * trial.mean_iou for trial in reference])),
                interval=Interval(100 * low_high.low, 100 * low_high.high),
                seeds=len(trials),
                parameters=trials[0].parameters,
                multiply_adds=trials[0].multiply_adds,
                seconds=float(np.mean([trial.seconds for trial in trials])),
            )
        )
    return tuple(lines)


def markdown(ablation: Ablation, lines: tuple[Line, ...], command: str) -> str:
    """Returns the table in Markdown, with an explanation of its numbers.

    Args:
        ablation: The finished trials.
        lines: The lines of the table.
        command: The command that ran the ablation.
    """
    seeds = len(ablation.trials[REFERENCE])
    rows = [
        f"| {line.name} | {line.mean:.2f} | {published_text(line) or '-'} | {_spread(line)} | {line.verdict()} "
        f"| {line.parameters / 1e6:.2f} | {line.multiply_adds / 1e9:.2f} | {line.seconds:.2f} |"
        for line in lines
    ]
    left_out = [f"- {name}: left out, {reason}" for name, reason in ablation.left_out]
    return "\n".join(
        [
            f"`{command}`",
            "",
            f"Mean IoU in points at the end of each run on {escape_markdown(ablation.split)}; "
            f"{seeds} seed{'s' * (seeds > 1)}, the same samples in the same order for every row. "
            f"{escape_markdown(_cost(ablation))} Spread: standard deviation over seeds. {_reading(seeds)} {SOURCE}",
            "",
            f"| row | mIoU | published | spread | against the {REFERENCE} | parameters (M) | multiply-adds (G) "
            "| s/step |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            *([""] if left_out else []),
            *left_out,
            "",
        ]
    )


def comma_separated(lines: tuple[Line, ...]) -> str:
    """Returns the table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        numbers = (line.spread, line.difference, line.interval.low, line.interval.high)
        costs = (line.parameters / 1e6, line.multiply_adds / 1e9, line.seconds)
        rest = (f"{number:.4f}" for number in (*numbers, *costs))
        writer.writerow([line.name, f"{line.mean:.4f}", published_text(line), *rest])
    return text.getvalue()


def published_text(line: Line) -> str:
    """Returns the paper's score, or an empty string if it has none."""
    return "" if line.published is None else f"{line.published:.1f}"


def figure(lines: tuple[Line, ...]) -> Figure:
    """Returns a plot of the differences from the reference with their intervals."""
    shown = [line for line in lines if line.name != REFERENCE]
    picture = Figure(figsize=(7, 1 + 0.36 * len(shown)), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    for y, line in enumerate(reversed(shown)):
        color = "tab:blue" if line.distinguishable else "tab:gray"
        axes.plot([line.interval.low, line.interval.high], [y, y], color=color, linewidth=2)
        axes.plot(line.difference, y, "o", color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [line.name for line in reversed(shown)])
    has_verdicts = all(line.distinguishable is not None for line in shown)
    colors = f"grey: {NOT_DISTINGUISHABLE}" if has_verdicts else "too few seeds for a verdict"
    axes.set_xlabel(f"mIoU against the {REFERENCE}, points; {colors}")
    axes.grid(axis="x", alpha=0.3)
    return picture


def write_tables(ablation: Ablation, folder: OutputFolder, command: str) -> None:
    """Writes `ablation.md`, `ablation.csv` and `ablation.png`."""
    lines, picture = table_lines(ablation), io.BytesIO()
    folder.write("ablation.md", markdown(ablation, lines, command).encode())
    folder.write("ablation.csv", comma_separated(lines).encode())
    figure(lines).savefig(picture, dpi=110, format="png")
    folder.write("ablation.png", picture.getvalue())


def _cost(ablation: Ablation) -> str:
    """Returns the total training time and the hardware."""
    trials = [trial for row in ablation.trials.values() for trial in row]
    hours = sum(trial.training_seconds for trial in trials) / 3600
    hardware = "; ".join(
        f"{name} ({count} runs)" for name, count in Counter(trial.hardware for trial in trials).items()
    )
    return f"{hours:.1f} hours of training steps in total, on {hardware}."


def _reading(seeds: int) -> str:
    """Returns an explanation of the differences and their intervals."""
    scope = "over images and, by Student's t, over seeds" if seeds > 1 else "over images; it does not cover other seeds"
    interval = f"Differences are paired, with their {100 * LEVEL:g} % interval {scope}."
    if seeds < SEEDS_FOR_A_VERDICT:
        return f"{interval} There is no verdict with fewer than {SEEDS_FOR_A_VERDICT} seeds."
    return f"{interval} One in twenty rows without an effect is distinguishable by chance."


def _spread(line: Line) -> str:
    return "-" if math.isnan(line.spread) else f"{line.spread:.2f}"
