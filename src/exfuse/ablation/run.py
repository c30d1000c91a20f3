"""Running the cells of an ablation, each once: a cell that is done is read, one that was cut off goes on."""

import itertools
import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from exfuse.ablation.rows import Row, cell_config, plan_rows
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.scan import scan_dataset
from exfuse.distributed import Ranks, only_process
from exfuse.durable import alone, digest_of, reason, replace_file
from exfuse.errors import CheckpointError, ConfigError, DataError
from exfuse.evaluation.bootstrap import Int64Array, mean_iou
from exfuse.evaluation.evaluate import score_split
from exfuse.inference.predictor import Predictor
from exfuse.models.backbone_weights import load_backbone_weights
from exfuse.models.builders import count_multiply_adds, count_parameters, create_model
from exfuse.models.folder import WEIGHTS_FILE
from exfuse.models.info import ModelInfo
from exfuse.training.checkpoint import has_checkpoint
from exfuse.training.config import AblationConfig, TrainingConfig
from exfuse.training.log import read_records
from exfuse.training.recipes import differing_keys, load_recorded
from exfuse.training.run import CONFIG_FILE
from exfuse.training.segmentation import train

CELL_FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """What one run gave, at its end (and not at its best, which would favour rows that jump about).

    Attributes:
        of_images: int64 `(N, 3, K)` on the validation split; see `exfuse.evaluation.bootstrap`.
        parameters: Of the network.
        multiply_adds: Of one image of the crop's size.
        seconds: Of a training step, the median of those recorded.
        training_seconds: Of all training steps together.
        hardware: On which it ended.
    """

    of_images: Int64Array
    parameters: int
    multiply_adds: int
    seconds: float
    training_seconds: float
    hardware: str

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the split, 0 to 1."""
        return float(mean_iou(self.of_images.sum(axis=0)))


@dataclass(frozen=True)
class Ablation:
    """All that was run.

    Attributes:
        cells: For each row, one cell a seed.
        left_out: Name and reason of rows that could not be run.
        split: The validation split's name and number of images.
    """

    cells: dict[str, tuple[Cell, ...]]
    left_out: tuple[tuple[str, str], ...]
    split: str


def run_ablation(config: AblationConfig, console: Console) -> Iterator[Ablation]:
    """Runs every row with every seed; what is done already is not done again.

    Several processes may do so at once: each takes the cells that no other has taken.

    Yields:
        What there is whenever all rows have one more seed.

    Raises:
        ConfigError: If the recipe cannot be run, or a cell's folder holds a run of another recipe.
        DataError: If the data is bad.
        CheckpointError: If something cannot be written or read; for pre-trained backbones before anything is run.
        TrainingError: If a loss is no longer finite.
        Interrupted: After Ctrl-C; the same command goes on.
    """
    only_process(config.command)
    if config.data.root is None:
        raise ConfigError("data.root is not set: add data.root=FOLDER (or a dataset file)")
    train_split, val = (
        open_dataset(config.data.root, split) for split in (config.data.train_split, config.data.val_split)
    )
    plan = plan_rows(config)
    _check_backbones(config, plan.rows, len(val.classes))
    fingerprint = f"{scan_dataset(train_split).fingerprint} {scan_dataset(val).fingerprint}"
    runs = f"{len(plan.rows)} rows with {config.seeds} seed{'s' * (config.seeds > 1)} each, in {config.output}"
    console.print(runs, markup=False, highlight=False, soft_wrap=True)
    for name, why in plan.left_out:
        console.print(f"{name}: left out, {why}", markup=False, highlight=False, soft_wrap=True)
    cells: dict[tuple[int, str], Cell] = {}
    missing = list(itertools.product(range(config.seeds), plan.rows))
    seeds_shown = 0
    while missing:
        wait = False
        # From the first on, each time: what another process has finished meanwhile may complete a seed.
        for seed, row in [*missing, missing[0]]:
            cell = _take_cell(config, row, seed, val, fingerprint, console, wait)
            if cell is not None:
                break
            wait = (seed, row) == missing[-1]
        assert cell is not None  # noqa: S101 - the last attempt waits
        missing.remove((seed, row))
        cells[seed, row.name] = cell
        seeds = _whole_seeds(cells, plan.rows)
        if seeds > seeds_shown:
            seeds_shown = seeds
            of_rows = {row.name: tuple(cells[seed, row.name] for seed in range(seeds)) for row in plan.rows}
            yield Ablation(of_rows, plan.left_out, f"{val.split}, {len(val)} images")


def _check_backbones(config: AblationConfig, rows: tuple[Row, ...], num_classes: int) -> None:
    """Loads each pre-trained backbone once as the rows will, so that none fails after the hours of those before."""
    models = [cell_config(config, row, 0, num_classes).model for row in rows]
    ways = {(model.backbone_weights, model.name, model.supervised_features): model for model in models}
    for (weights, name, _), model in ways.items():
        if weights is not None:
            network = create_model(name, num_classes=num_classes, **model.parts())
            load_backbone_weights(network.backbone, weights)  # type: ignore[arg-type]


def _whole_seeds(cells: dict[tuple[int, str], Cell], rows: tuple[Row, ...]) -> int:
    """Returns for how many seeds, from the first on, every row is done."""
    whole = (all((seed, row.name) in cells for row in rows) for seed in itertools.count())
    return sum(1 for _ in itertools.takewhile(bool, whole))


def _take_cell(
    config: AblationConfig,
    row: Row,
    seed: int,
    val: SegmentationDataset,
    fingerprint: str,
    console: Console,
    wait: bool,
) -> Cell | None:
    """Returns a cell, run if it is not done; None if another process is at it, unless that is to be waited for."""
    cell = cell_config(config, row, seed, len(val.classes))
    trained_on = {"data_sha256": fingerprint, "backbone_sha256": _digest(cell.model.backbone_weights)}
    lock = cell.output.with_name(f".{cell.output.name}.lock")
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            taken = held.enter_context(alone(lock, wait))
        except OSError as error:
            raise CheckpointError(f"{lock}: cannot be written ({reason(error, lock)})") from error
        if not taken:
            return None
        console.print(f"{row.name}, seed {seed}", markup=False, highlight=False)
        return _run_cell(cell, trained_on, val, only_process(config.command), console)


def _run_cell(
    cell: TrainingConfig, trained_on: dict[str, str | None], val: SegmentationDataset, ranks: Ranks, console: Console
) -> Cell:
    done = cell.output / CELL_FILE
    if done.is_file():
        changed = differing_keys(load_recorded(cell.output / CONFIG_FILE, TrainingConfig), cell)
        if changed:
            raise ConfigError(
                f"{cell.output}: run with another {', '.join(changed)}; choose another output, or remove that folder"
            )
        return _read_cell(done, trained_on)
    start = cell.output.with_name(f"{cell.output.name}.json")
    if has_checkpoint(cell.output / "checkpoints"):
        _check_trained_on(start, trained_on)
    else:
        replace_file(start, json.dumps(trained_on))
    train(cell, resume=True, console=console)
    predictor = Predictor.from_pretrained(cell.output / "model_last", "torch", cell.precision)
    of_images = score_split(predictor, val, ranks, Console(quiet=True)).of_images
    content = trained_on | _describe(cell, predictor.info, of_images) | {"hardware": _hardware(ranks.device)}
    replace_file(done, json.dumps(content))
    return _cell_of(content)


def _describe(cell: TrainingConfig, info: ModelInfo, of_images: Int64Array) -> dict[str, Any]:
    model = info.build()
    records = [record for record in read_records(cell.output) if record["kind"] == "train"]
    seconds = [record["seconds_per_step"] for record in records]
    steps = np.diff([0, *(record["step"] for record in records)])
    return {
        "of_images": of_images.tolist(),
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, *cell.data.crop_size),
        "seconds": float(np.median(seconds)),
        "training_seconds": float(np.dot(steps, seconds)),
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.partition(":")[2] for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{(names or [platform.machine()])[0].strip()}, {threads} thread{'s' * (threads > 1)}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _digest(weights: Path | None) -> str | None:
    if weights is None:
        return None
    path = weights / WEIGHTS_FILE if weights.is_dir() else weights
    try:
        return digest_of(path).sha256
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _read_cell(path: Path, trained_on: dict[str, str | None]) -> Cell:
    content = _check_trained_on(path, trained_on)
    try:
        return _cell_of(content)
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error


def _check_trained_on(path: Path, trained_on: dict[str, str | None]) -> dict[str, Any]:
    """Returns a record, whose cell was trained on the data and from the weights of now."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            what
            for key, what in (("data_sha256", "data"), ("backbone_sha256", "backbone weights"))
            if content[key] != trained_on[key]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
    if changed:
        raise DataError(f"{path}: run with other {changed[0]}; choose another output, or remove the cell's folder")
    return content


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not the record of a cell ({error}); remove the cell's folder to run it again")


def _cell_of(content: dict[str, Any]) -> Cell:
    return Cell(
        of_images=np.array(content["of_images"], dtype=np.int64),
        parameters=content["parameters"],
        multiply_adds=content["multiply_adds"],
        seconds=content["seconds"],
        training_seconds=content["training_seconds"],
        hardware=content["hardware"],
    )
