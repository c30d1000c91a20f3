"""Training a segmentation network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from exfuse.data.augment import Augmentation
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.image_cache import MemmapDataset, build_image_cache
from exfuse.data.loader import AugmentedDataset
from exfuse.data.samples import Sample
from exfuse.data.stats import DatasetStats, compute_stats
from exfuse.distributed import DistContext, barrier
from exfuse.errors import ConfigError, DataError, OutputError
from exfuse.evaluation.bootstrap import mean_iou_interval
from exfuse.evaluation.evaluate import EvaluationReport, describe_protocol, score_split
from exfuse.evaluation.report import model_card, run_report
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.losses import CLASS_WEIGHTS, SegmentationLoss
from exfuse.models.exfuse import ExFuse, ExFuseOutput
from exfuse.models.options import changed_options
from exfuse.models.registry import build_model
from exfuse.models.storage.backbone_weights import load_backbone_weights, pretraining_normalization
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import check_restorable, load_pretrained, save_pretrained
from exfuse.outputs.folder import claim_folder
from exfuse.predictor import Predictor
from exfuse.training.config import DataConfig, LossConfig, TrainingConfig
from exfuse.training.lifecycle import run_training
from exfuse.training.log import read_records
from exfuse.training.run import check_data, start_run, training_session
from exfuse.training.task import Evaluation

REPORT_FILE = "report.html"


def train(config: TrainingConfig, resume: bool, console: Console) -> EvaluationReport:
    """Trains a network; writes recipe, records, checkpoints, best and last model, and a report to the run folder.

    Under torchrun every process calls this; the samples of each step are the same for any number of processes.

    Args:
        config: The recipe.
        resume: Whether to continue from the latest checkpoint in the run folder, if there is one.
        console: Prints progress and tables.

    Returns:
        The scores of the best model on the validation split.

    Raises:
        ConfigError: If the configuration is invalid, or the run folder contains another run.
        DataError: If the data is invalid; raised before training starts.
        CheckpointError: If a checkpoint cannot be written or, with `resume`, read.
        TrainingError: If the loss or the gradient is not finite, or memory is exhausted.
        Interrupted: After Ctrl-C or SIGTERM, once the last finished step is saved.
    """
    with training_session(config, resume, console) as (dist, stop, output):
        task, model = set_up(config, dist, output)
        run = start_run(config, model, len(task.train.dataset), dist)
        run_training(run, task, resume, stop, output)
        if dist.is_main:
            page = run_report(config.output, task.val.dataset, read_records(config.output))
            try:
                with claim_folder(config.output, config.command) as folder:
                    folder.write(REPORT_FILE, page.encode())
            except OutputError as error:  # not fatal: the run itself is complete
                output.print(f"no report: {error}", style="yellow", markup=False, soft_wrap=True)
        barrier(dist)
        _, info = load_pretrained(config.output / task.best_folder)
        return EvaluationReport.from_json(info.metrics)


class Split(NamedTuple):
    """A split and its statistics, for which every file was read and checked once."""

    dataset: SegmentationDataset
    stats: DatasetStats


@dataclass(frozen=True)
class SegmentationTask:
    """Semantic segmentation; a `Task`."""

    config: TrainingConfig
    dist: DistContext
    train: Split
    val: Split
    images: SegmentationDataset | MemmapDataset
    info: ModelMetadata
    criterion: SegmentationLoss
    best_folder: str = "model"

    @property
    def fingerprint(self) -> str:
        """The fingerprints of both splits; see `compute_stats`."""
        return f"{self.train.stats.fingerprint} {self.val.stats.fingerprint}"

    def samples(self) -> AugmentedDataset[Sample]:
        """Returns the augmented training samples."""
        data = self.config.data
        red, green, blue = (round(255 * value) for value in data.image_mean)
        augmentation = Augmentation(
            crop_size=data.crop_size,
            scale=data.scale,
            flip=data.flip,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
            fill=(red, green, blue),
            ignore_index=self.info.ignore_index,
        )
        return AugmentedDataset(self.images, augmentation, self.config.seed)

    def loss(self, output: ExFuseOutput, targets: Tensor) -> Tensor:
        """Returns the weighted sum of the recipe's losses."""
        return self.criterion(output.logits, output.auxiliary_logits, targets.long())

    def weight(self, targets: Tensor) -> Tensor:
        """Returns the sum of the class weights of the labelled pixels."""
        return self.criterion.weight(targets)

    def evaluate(self, model: nn.Module, step: int, check_stop: Callable[[], None]) -> Evaluation:
        """Scores the network by its mean IoU on the validation split."""
        engine = TorchEngine(model, self.info, precision=self.config.precision, device=self.dist.device)
        predictor = Predictor(engine, self.info)
        scores = score_split(predictor, self.val.dataset, self.dist, Console(quiet=True), check_stop=check_stop)
        matrix, interval = scores.matrix, mean_iou_interval(scores.per_image)
        protocol = describe_protocol(predictor, self.val.dataset, self.val.stats.fingerprint)
        report = EvaluationReport(matrix, self.info.class_names, protocol | {"step": step}, interval)
        measured = replace(self.info, metrics=report.to_json())

        def save(folder: Path, chosen: bool) -> None:
            save_pretrained(folder, model, measured.to_json(), model_card(measured, report, chosen))

        values = {
            "mean_iou": matrix.mean_iou(),
            "pixel_accuracy": matrix.pixel_accuracy(),
            "mean_accuracy": matrix.mean_accuracy(),
        }
        return Evaluation(matrix.mean_iou(), "mIoU", values, save)


def set_up(config: TrainingConfig, dist: DistContext, console: Console) -> tuple[SegmentationTask, ExFuse]:
    """Opens and checks the data and builds the network.

    Raises:
        ConfigError: If the configuration is invalid.
        DataError: If a file of either split is invalid, a split has no labelled pixel, or processes read different
            data.
        CheckpointError: If the initial weights cannot be loaded.
    """
    torch.manual_seed(config.seed)
    train_split, val_split = (
        _open_split(config.data, split, console) for split in (config.data.train_split, config.data.val_split)
    )
    facts: dict[str, object] = {}
    for part, split in (("training", train_split), ("validation", val_split)):
        facts |= {f"{part} images": len(split.dataset), f"{part} fingerprint": split.stats.fingerprint[:16]}
    check_data(facts, dist)
    info = model_info(config, train_split.dataset)
    model = build_model(info)
    if not model.backbone.is_restorable:
        check_restorable(model, info)
    if config.model.backbone_weights is not None:
        load_backbone_weights(model.backbone, config.model.backbone_weights)
        _compare_normalization(config, console)
    if config.model.weights is not None:
        load_weights(model, info, config.model.weights)
    criterion = _build_loss(config.loss, train_split, dist)
    images = _decoded(train_split, dist, console) if config.data.cache else train_split.dataset
    return SegmentationTask(config, dist, train_split, val_split, images, info, criterion), model


def _compare_normalization(config: TrainingConfig, console: Console) -> None:
    """Prints a warning if the backbone was pre-trained with another normalisation of colours."""
    weights = config.model.backbone_weights
    pretrained = None if weights is None else pretraining_normalization(weights)
    now = list(config.data.image_mean), list(config.data.image_std)
    if pretrained is not None and pretrained != now:
        console.print(
            f"{weights}: pre-trained with data.image_mean={pretrained[0]} data.image_std={pretrained[1]}, "
            "but this recipe has other values",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def load_weights(model: ExFuse, info: ModelMetadata, source: Path) -> None:
    """Copies the weights of a trained network into a new one.

    Args:
        model: The new network, changed in place.
        info: Its metadata.
        source: The model folder of the trained network.

    Raises:
        CheckpointError: If the folder cannot be read.
        ConfigError: If the architecture or the classes differ.
    """
    trained, other = load_pretrained(source)
    if other.class_names != info.class_names:
        raise ConfigError(f"model.weights: {source} has other classes ({', '.join(other.class_names[:5])}, ...)")
    # Compared by structure, because different names and options can describe the same network.
    if _structure(trained) != _structure(model):
        theirs, ours = (f"{each.name} with {changed_options(each.name, each.options)}" for each in (other, info))
        raise ConfigError(f"model.weights: {source} contains {theirs}, but this recipe trains {ours}")
    model.load_state_dict(trained.state_dict())


def _structure(model: nn.Module) -> tuple[str, list[tuple[str, torch.Size]]]:
    """Returns a network's printed modules, and the names and shapes of its tensors."""
    return str(model), [(name, tensor.shape) for name, tensor in model.state_dict().items()]


def _open_split(config: DataConfig, split: str, console: Console) -> Split:
    if config.root is None:
        raise ConfigError("data.root is not set; add data.root=FOLDER (or a dataset file)")
    dataset = open_dataset(config.root, split)
    with console.status(f"checking the {len(dataset)} images of {split}"):
        stats = compute_stats(dataset)
    if not stats.pixel_counts.any():
        raise DataError(
            f"{dataset.root}: the {len(dataset)} masks of {split} have no labelled pixel, all {stats.ignored:,} are "
            "ignored; choose another split, or correct the masks or ignore_index"
        )
    return Split(dataset, stats)


def _decoded(split: Split, dist: DistContext, console: Console) -> MemmapDataset:
    with console.status(f"decoding the {len(split.dataset)} images of {split.dataset.split}"):
        if dist.is_main:
            build_image_cache(split.dataset, split.stats.fingerprint)
        barrier(dist)
        return build_image_cache(split.dataset, split.stats.fingerprint)


def _build_loss(config: LossConfig, train_split: Split, dist: DistContext) -> SegmentationLoss:
    weights = None
    if config.class_weights != "none":
        weights = CLASS_WEIGHTS[config.class_weights](train_split.stats).to(dist.device)
    ignore_index = train_split.dataset.classes.ignore_index
    return SegmentationLoss(ignore_index, weights, config.ohem, config.terms, config.auxiliary)


def model_info(config: TrainingConfig, dataset: SegmentationDataset) -> ModelMetadata:
    """Returns the metadata of the run's network."""
    return ModelMetadata(
        name=config.model.name,
        options=config.model.options,
        class_names=dataset.classes.names,
        palette=dataset.classes.palette,
        ignore_index=dataset.classes.ignore_index,
        image_mean=config.data.image_mean,
        image_std=config.data.image_std,
    )
