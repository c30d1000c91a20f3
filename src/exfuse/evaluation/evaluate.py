"""Scoring a model on a whole split, with a record of the protocol."""

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.stats import compute_stats
from exfuse.distributed import DistContext, all_reduce_sum, process_group
from exfuse.errors import ConfigError, did_you_mean
from exfuse.evaluation.bootstrap import Int64Array, Interval, image_counts, mean_iou_interval
from exfuse.evaluation.metrics import METRICS, Metric, ScoredImage, make_metrics
from exfuse.export.open import reference_engine
from exfuse.inference.engines.base import Precision
from exfuse.inference.tta import TestTimeAugmentation
from exfuse.metrics import ConfusionMatrix
from exfuse.models.storage.metadata import check_classes
from exfuse.predictor import Predictor

ABSENT_RULE = "classes without a labelled pixel in the split are excluded from the means"
DEFINITION = "mean over classes of hits / (true + predicted - hits), each summed over all labelled pixels of the split"


class SplitScores(NamedTuple):
    """The counts over a split.

    Attributes:
        matrix: The confusion matrix over all labelled pixels.
        per_image: int64 `(N, 3, K)`, hits, true and predicted pixels of each image; see `exfuse.evaluation.bootstrap`.
        metrics: Further metrics, by name.
    """

    matrix: ConfusionMatrix
    per_image: Int64Array
    metrics: dict[str, Metric]


def score_split(
    predictor: Predictor,
    dataset: SegmentationDataset,
    dist: DistContext,
    console: Console,
    metrics: Sequence[str] = (),
    check_stop: Callable[[], None] = lambda: None,
) -> SplitScores:
    """Counts (true, predicted) pairs over a split at the images' original size, one image at a time.

    Of n processes, each scores every n-th image; the counts are summed, so each image counts exactly once. Each image
    needs 24 bytes of memory per class.

    Args:
        predictor: The model.
        dataset: The split.
        dist: This process's context.
        console: Shows the progress bar.
        metrics: Names of further metrics in `METRICS`.
        check_stop: Called before each image, equally often in every process.

    Raises:
        DataError: If the classes of data set and model differ, or a file is invalid.
    """
    check_classes(predictor.info, dataset)
    num_classes, ignore_index = len(dataset.classes), dataset.classes.ignore_index
    matrix = ConfusionMatrix(num_classes, ignore_index)
    per_image = torch.zeros(len(dataset), 3, num_classes, dtype=torch.int64)
    further = make_metrics(metrics, num_classes, ignore_index)
    rounds = range(dist.rank, len(dataset) + dist.rank, dist.size)
    shown = dist.is_main and console.is_terminal  # in a log file the bar would be broken lines
    for index in track(rounds, "evaluating", console=console, transient=True, disable=not shown):
        check_stop()
        if index >= len(dataset):
            continue
        sample = dataset[index]
        prediction = predictor(sample.image, confidence=bool(further))
        image = ConfusionMatrix(num_classes, ignore_index)
        image.update(prediction.labels, sample.mask)
        matrix.counts += image.counts
        per_image[index] = torch.from_numpy(image_counts(image.counts.numpy()))
        if prediction.confidence is not None:
            scored = ScoredImage(prediction.confidence, prediction.labels, sample.mask)
            for metric in further.values():
                metric.update(scored)
    matrix.counts = all_reduce_sum(matrix.counts, dist)
    for metric in further.values():
        metric.counts = all_reduce_sum(metric.counts, dist)
    return SplitScores(matrix, all_reduce_sum(per_image, dist).numpy(), further)


@dataclass(frozen=True)
class EvaluationReport:
    """Scores of a model on a split.

    Attributes:
        matrix: The confusion matrix, from which all scores follow.
        class_names: One name per class.
        protocol: Everything that the scores depend on.
        interval: Interval of the mean IoU, or None if unknown.
        metrics: Results of further metrics, by name; any JSON.
    """

    matrix: ConfusionMatrix
    class_names: tuple[str, ...]
    protocol: dict[str, Any]
    interval: Interval | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in the targets, 0 to 1."""
        return self.matrix.mean_iou()

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that do not occur in the targets and are therefore excluded from the means."""
        return tuple(name for name, present in zip(self.class_names, self.matrix.present(), strict=True) if not present)

    def to_json(self) -> dict[str, Any]:
        """Returns scores, per-class scores, counts and protocol; absent classes have null scores."""
        matrix = self.matrix
        pixels = matrix.counts.sum(dim=1).tolist()
        rows = zip(self.class_names, matrix.iou(), matrix.accuracy(), pixels, strict=True)
        return {
            "mean_iou": _number(matrix.mean_iou()),
            "mean_iou_interval": self.interval.to_json() if self.interval else None,
            "pixel_accuracy": _number(matrix.pixel_accuracy()),
            "mean_accuracy": _number(matrix.mean_accuracy()),
            "frequency_weighted_iou": _number(matrix.frequency_weighted_iou()),
            "classes": [
                {"name": name, "iou": _number(iou), "accuracy": _number(accuracy), "pixels": count}
                for name, iou, accuracy, count in rows
            ],
            "absent_classes": list(self.absent),
            "metrics": self.metrics,
            "confusion": matrix.counts.tolist(),
            "protocol": self.protocol,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EvaluationReport":
        """Returns the report from the content that `to_json` returned."""
        names = tuple(row["name"] for row in content["classes"])
        matrix = ConfusionMatrix(len(names), content["protocol"]["ignore_index"])
        matrix.counts = torch.tensor(content["confusion"], dtype=torch.int64)
        ends = content["mean_iou_interval"]
        interval = None
        if ends is not None:
            low, high = (math.nan if ends[end] is None else ends[end] for end in ("low", "high"))
            interval = Interval(low, high)
        return cls(matrix, names, content["protocol"], interval, content["metrics"])


def evaluate(
    model: str | Path | Predictor,
    data: str | Path,
    split: str = "val",
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    metrics: Sequence[str] = (),
    engine: str | None = None,
    precision: Precision | None = None,
    console: Console | None = None,
) -> EvaluationReport:
    """Scores a model on a whole split, at the images' original size.

    Under torchrun every process calls this and scores its shard of the images; each returns the report on all images.

    Args:
        model: A model folder, an export or "hf://OWNER/NAME"; or a predictor, to which `scales`, `flip`, `engine` and
            `precision` do not apply.
        data: A data set: a folder or a dataset file, as for `open_dataset`.
        split: The split to score.
        scales: Image scales whose predictions are averaged.
        flip: Whether to average with the prediction of the mirrored image.
        metrics: Further metrics, names in `exfuse.evaluation.metrics.METRICS`.
        engine: As in `Predictor.from_pretrained`; None is torch (the reference), or an export's own engine.
        precision: As in `Predictor.from_pretrained`.
        console: Shows progress; None shows nothing.

    Raises:
        CheckpointError: If the model cannot be loaded.
        ConfigError: If the engine or a metric is unknown, or the engine does not support an option.
        DataError: If a file of the split is invalid, or the classes of data set and model differ.
    """
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; {did_you_mean(name, METRICS)}")
    console = console or Console(quiet=True)
    with process_group() as dist:
        if isinstance(model, Predictor):
            predictor, described = model, {}
        else:
            described = {"model": str(model)}
            augmentation = TestTimeAugmentation(tuple(scales), flip)
            predictor = Predictor.from_pretrained(model, reference_engine(model, engine), precision, augmentation)
        dataset = open_dataset(data, split)
        check_classes(predictor.info, dataset)
        with console.status(f"checking the {len(dataset)} images of {split}"):
            stats = compute_stats(dataset)
        scores = score_split(predictor, dataset, dist, console, metrics)
        return EvaluationReport(
            scores.matrix,
            dataset.classes.names,
            describe_protocol(predictor, dataset, stats.fingerprint) | described,
            mean_iou_interval(scores.per_image),
            {name: metric.result() for name, metric in scores.metrics.items()},
        )


def describe_protocol(predictor: Predictor, dataset: SegmentationDataset, fingerprint: str) -> dict[str, Any]:
    """Returns everything that the scores of an evaluation depend on, as JSON.

    Args:
        predictor: The model.
        dataset: The split.
        fingerprint: Fingerprint of the split; see `compute_stats`.
    """
    engine = predictor.engine
    augmentation = engine.augmentation
    return {
        "data": str(dataset.root),
        "split": dataset.split,
        "images": len(dataset),
        "data_sha256": fingerprint,
        "ignore_index": dataset.classes.ignore_index,
        "mean_iou": DEFINITION,
        "counting": "exact 64-bit integers, at the images' original size",
        "absent_classes": ABSENT_RULE,
        "scales": list(augmentation.scales),
        "flip": augmentation.flip,
        "averaging": "softmax probabilities" if augmentation.passes > 1 else "none",
        "resize": "none" if augmentation.scales == (1.0,) else "bilinear, antialiased when shrinking",
        "padding": "mean colour at the bottom and right to a multiple of 32, cropped afterwards",
        "engine": engine.name,
        "precision": engine.precision,
        "device": engine.device,
        "versions": {name: version(name) for name in ("exfuse", "torch", "numpy", "pillow")}
        | {"python": platform.python_version()},
    }


def _number(value: float) -> float | None:
    return None if value != value else float(value)
