"""Training from Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from exfuse.evaluation.evaluate import EvaluationReport
from exfuse.training import segmentation
from exfuse.training.recipes import load_config


class TrainingResult(NamedTuple):
    """A finished run.

    Attributes:
        folder: The run folder, which contains the recipe, the records, the checkpoints and `report.html`.
        model: The folder of the best model, for `Predictor.from_pretrained`, `evaluate` and `export_model`.
        report: The scores of the best model on the validation split.
    """

    folder: Path
    model: Path
    report: EvaluationReport


def train(
    recipe: str | Path | Mapping[str, Any], *, resume: bool = False, console: Console | None = None, **overrides: Any
) -> TrainingResult:
    """Trains a network, like `exfuse train`.

    Args:
        recipe: A recipe of the package, such as "camvid_resnet18", the path of a YAML file, or its keys and values.
        resume: Whether to continue from the latest checkpoint in the run folder, if there is one.
        console: Prints progress and tables; None prints nothing.
        overrides: Keys of the recipe to change, nested as in the file: `epochs=20, data={"root": "photos"}`.

    Raises:
        ConfigError: If the recipe is invalid, or the run folder contains another run.
        DataError: If the data is invalid; raised before training starts.
        CheckpointError: If a checkpoint cannot be written or, with `resume`, read.
        OutputError: If the run folder contains other files, or another process is training in it.
        TrainingError: If the loss or the gradient is not finite, or memory is exhausted.
        Interrupted: After Ctrl-C or SIGTERM, once the last finished step is saved.
    """
    config = load_config(str(recipe) if isinstance(recipe, Path) else recipe, overrides)
    report = segmentation.train(config, resume, console or Console(quiet=True))
    return TrainingResult(config.output, config.output / segmentation.SegmentationTask.best_folder, report)
