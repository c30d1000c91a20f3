"""Running the trials of an ablation: finished trials are read, interrupted ones are resumed."""

import itertools
import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from exfuse.ablation.rows import Row, plan_rows, trial_config
from exfuse.atomic_io import atomic_write_text, describe_os_error, digest_of, file_lock
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.stats import compute_stats
from exfuse.distributed import DistContext, only_process
from exfuse.errors import CheckpointError, ConfigError, DataError
from exfuse.evaluation.bootstrap import Int64Array, mean_iou
from exfuse.evaluation.evaluate import score_split
from exfuse.models.registry import build_model, count_multiply_adds, count_parameters, create_model
from exfuse.models.storage.backbone_weights import load_backbone_weights
from exfuse.models.storage.folder import WEIGHTS_FILE
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.predictor import Predictor
from exfuse.training.checkpoint import has_checkpoint
from exfuse.training.config import AblationConfig, TrainingConfig
from exfuse.training.log import read_records
from exfuse.training.recipes import differing_keys, load_recorded
from exfuse.training.run import CONFIG_FILE
from exfuse.training.segmentation import train

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class Trial:
    """The result of one run, measured at its end; choosing its best step would favour rows with noisy scores.

    Attributes:
        per_image: Counts, int64 `(N, 3, K)`, on the validation split; see `exfuse.evaluation.bootstrap`.
        parameters: Parameters of the network.
        multiply_adds: Multiply-adds for one image of the crop's size.
        seconds: Seconds per training step, the median of the recorded ones.
        training_seconds: Seconds of all training steps together.
        hardware: The processor or GPU on which the run finished.
    """

    per_image: Int64Array
    parameters: int
    multiply_adds: int
    seconds: float
    training_seconds: float
    hardware: str

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the split, 0 to 1."""
        return float(mean_iou(self.per_image.sum(axis=0)))


@dataclass(frozen=True)
class Ablation:
    """The finished trials of an ablation.

    Attributes:
        trials: For each row, one trial per seed.
        left_out: Name and reason of each row that could not be run.
        split: The validation split's name and number of images.
    """

    trials: dict[str, tuple[Trial, ...]]
    left_out: tuple[tuple[str, str], ...]
    split: str


def run_ablation(config: AblationConfig, console: Console) -> Iterator[Ablation]:
    """Runs every row with every seed; finished trials are not repeated.

    Several processes may run the same ablation at once: each runs only trials that no other process is running.

    Yields:
        The results so far, each time all rows have finished one more seed.

    Raises:
        ConfigError: If the recipe is invalid, or a trial's folder contains a run of another recipe.
        DataError: If the data is invalid.
        CheckpointError: If a file cannot be written or read; pre-trained backbones are checked before the first run.
        TrainingError: If the loss or the gradient is not finite, or memory is exhausted.
        Interrupted: After Ctrl-C; the same command continues.
    """
    only_process(config.command)
    if config.data.root is None:
        raise ConfigError("data.root is not set; add data.root=FOLDER (or a dataset file)")
    train_split, val = (
        open_dataset(config.data.root, split) for split in (config.data.train_split, config.data.val_split)
    )
    plan = plan_rows(config)
    _check_backbones(config, plan.rows, len(val.classes))
    fingerprint = f"{compute_stats(train_split).fingerprint} {compute_stats(val).fingerprint}"
    runs = f"{len(plan.rows)} rows with {config.seeds} seed{'s' * (config.seeds > 1)} each, in {config.output}"
    console.print(runs, markup=False, highlight=False, soft_wrap=True)
    for name, reason in plan.left_out:
        console.print(f"{name}: left out, {reason}", markup=False, highlight=False, soft_wrap=True)
    trials: dict[tuple[int, str], Trial] = {}
    missing = list(itertools.product(range(config.seeds), plan.rows))
    seeds_shown = 0
    while missing:
        wait = False
        # Starts at the first missing trial each time: one that another process has finished may complete a seed.
        for seed, row in [*missing, missing[0]]:
            trial = _run_trial(config, row, seed, val, fingerprint, console, wait)
            if trial is not None:
                break
            wait = (seed, row) == missing[-1]
        assert trial is not None  # noqa: S101 - the last attempt waits
        missing.remove((seed, row))
        trials[seed, row.name] = trial
        seeds = _complete_seeds(trials, plan.rows)
        if seeds > seeds_shown:
            seeds_shown = seeds
            by_row = {row.name: tuple(trials[seed, row.name] for seed in range(seeds)) for row in plan.rows}
            yield Ablation(by_row, plan.left_out, f"{val.split}, {len(val)} images")


def _check_backbones(config: AblationConfig, rows: tuple[Row, ...], num_classes: int) -> None:
    """Loads each pre-trained backbone once, so that an invalid one raises an error before the first run."""
    models = [trial_config(config, row, 0, num_classes).model for row in rows]
    distinct = {(model.backbone_weights, model.name, model.supervised_features): model for model in models}
    for (weights, name, _), model in distinct.items():
        if weights is not None:
            network = create_model(name, num_classes=num_classes, **asdict(model.options))
            load_backbone_weights(network.backbone, weights)


def _complete_seeds(trials: dict[tuple[int, str], Trial], rows: tuple[Row, ...]) -> int:
    """Returns the number of seeds, counted from the first, for which every row is finished."""
    finished = (all((seed, row.name) in trials for row in rows) for seed in itertools.count())
    return sum(1 for _ in itertools.takewhile(bool, finished))


def _run_trial(
    config: AblationConfig,
    row: Row,
    seed: int,
    val: SegmentationDataset,
    fingerprint: str,
    console: Console,
    wait: bool,
) -> Trial | None:
    """Reads or runs a trial; returns None if another process is running it and `wait` is False."""
    trial = trial_config(config, row, seed, len(val.classes))
    trained_on = {"data_sha256": fingerprint, "backbone_sha256": _digest(trial.model.backbone_weights)}
    lock = trial.output.with_name(f".{trial.output.name}.lock")
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            taken = held.enter_context(file_lock(lock, wait))
        except OSError as error:
            raise CheckpointError(f"{lock}: cannot be written ({describe_os_error(error, lock)})") from error
        if not taken:
            return None
        console.print(f"{row.name}, seed {seed}", markup=False, highlight=False)
        return _read_or_run(trial, trained_on, val, only_process(config.command), console)


def _read_or_run(
    trial: TrainingConfig,
    trained_on: dict[str, str | None],
    val: SegmentationDataset,
    dist: DistContext,
    console: Console,
) -> Trial:
    done = trial.output / TRIAL_FILE
    if done.is_file():
        changed = differing_keys(load_recorded(trial.output / CONFIG_FILE, TrainingConfig), trial)
        if changed:
            raise ConfigError(
                f"{trial.output}: run with different values of {', '.join(changed)}; choose another output, or remove "
                "that folder"
            )
        return _read_trial(done, trained_on)
    start = trial.output.with_name(f"{trial.output.name}.json")
    if has_checkpoint(trial.output / "checkpoints"):
        _check_trained_on(start, trained_on)
    else:
        atomic_write_text(start, json.dumps(trained_on))
    train(trial, resume=True, console=console)
    predictor = Predictor.from_pretrained(trial.output / "model_last", "torch", trial.precision)
    per_image = score_split(predictor, val, dist, Console(quiet=True)).per_image
    content = trained_on | _describe(trial, predictor.info, per_image) | {"hardware": _hardware(dist.device)}
    atomic_write_text(done, json.dumps(content))
    return _trial_of(content)


def _describe(trial: TrainingConfig, info: ModelMetadata, per_image: Int64Array) -> dict[str, Any]:
    model = build_model(info)
    records = [record for record in read_records(trial.output) if record["kind"] == "train"]
    seconds = [record["seconds_per_step"] for record in records]
    steps = np.diff([0, *(record["step"] for record in records)])
    return {
        "per_image": per_image.tolist(),
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, *trial.data.crop_size),
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


def _read_trial(path: Path, trained_on: dict[str, str | None]) -> Trial:
    content = _check_trained_on(path, trained_on)
    try:
        return _trial_of(content)
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error


def _check_trained_on(path: Path, trained_on: dict[str, str | None]) -> dict[str, Any]:
    """Returns a record after checking that its trial used the present data and backbone weights."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            name
            for key, name in (("data_sha256", "data"), ("backbone_sha256", "backbone weights"))
            if content[key] != trained_on[key]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
    if changed:
        raise DataError(f"{path}: run with different {changed[0]}; choose another output, or remove the trial's folder")
    return content


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a valid trial record ({error}); remove the trial's folder to run it again")


def _trial_of(content: dict[str, Any]) -> Trial:
    return Trial(
        per_image=np.array(content["per_image"], dtype=np.int64),
        parameters=content["parameters"],
        multiply_adds=content["multiply_adds"],
        seconds=content["seconds"],
        training_seconds=content["training_seconds"],
        hardware=content["hardware"],
    )
