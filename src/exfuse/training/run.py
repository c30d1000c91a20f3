"""What a training run stands on: the data, checked; the network; the optimizers; and whether the folder is free."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.scan import DatasetScan, scan_dataset
from exfuse.distributed import Ranks
from exfuse.errors import ConfigError
from exfuse.losses import SegmentationLoss, enet_weights, median_frequency_weights
from exfuse.models.backbones import load_backbone_weights
from exfuse.models.exfuse import ExFuse
from exfuse.models.pretrained import ModelInfo
from exfuse.training.checkpoint import LATEST, TrainingState
from exfuse.training.config import DataConfig, LossConfig, TrainingConfig, differing_keys, load_config
from exfuse.training.optim import ExponentialMovingAverage, build_optimizers

CONFIG_FILE = "config.yaml"


class Split(NamedTuple):
    """A split that was read and checked once."""

    dataset: SegmentationDataset
    scan: DatasetScan


@dataclass
class Run:
    """Everything the loop works on."""

    config: TrainingConfig
    ranks: Ranks
    train: Split
    val: Split
    model: ExFuse
    network: nn.Module  # the model, wrapped where there are several processes
    average: ExponentialMovingAverage | None
    optimizers: tuple[Optimizer, ...]
    loss: SegmentationLoss
    state: TrainingState

    @property
    def steps_of_epochs(self) -> list[int]:
        """The number of steps after which each epoch's last sample was used."""
        samples, batch = len(self.train.dataset), self.config.batch_size
        return [-(-epoch * samples // batch) for epoch in range(1, self.config.epochs + 1)]

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints lie."""
        return self.config.output / "checkpoints"


def check_output(config: TrainingConfig, resume: bool) -> None:
    """Checks that the run folder is free for a new run, or holds the run to resume.

    Raises:
        ConfigError: If it is not so, or the recorded configuration would train differently.
    """
    if not resume:
        if (config.output / "checkpoints" / LATEST).exists():
            raise ConfigError(
                f"{config.output} holds a run already: add --resume to go on with it, or output=ANOTHER_FOLDER"
            )
        return
    recorded = config.output / CONFIG_FILE
    if not recorded.is_file():
        raise ConfigError(f"{config.output}: there is no run to resume")
    changed = differing_keys(load_config(str(recorded)), config)
    if changed:
        raise ConfigError(f"{recorded}: the run to resume was started with another {', '.join(changed)}")


def set_up(config: TrainingConfig, ranks: Ranks, console: Console) -> Run:
    """Opens and checks the data and builds everything else, at step 0.

    Raises:
        ConfigError: If the configuration cannot be run.
        DataError: On the first bad file of either split.
        CheckpointError: If the backbone's weights cannot be loaded.
    """
    pieces = config.accumulation * ranks.size
    if config.batch_size % pieces:
        raise ConfigError(
            f"batch_size {config.batch_size} is not a multiple of {pieces} "
            f"(accumulation {config.accumulation} times {ranks.size} processes)"
        )
    torch.manual_seed(config.seed)
    train, val = (
        _open_split(config.data, split, console) for split in (config.data.train_split, config.data.val_split)
    )
    model = model_info(config, train.dataset).build()
    if config.model.backbone_weights is not None:
        load_backbone_weights(model.backbone, config.model.backbone_weights)  # type: ignore[arg-type]
    if ranks.size > 1 and ranks.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(ranks.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer_config = config.optimizer
    return Run(
        config=config,
        ranks=ranks,
        train=train,
        val=val,
        model=model,
        network=DistributedDataParallel(model) if ranks.size > 1 else model,
        average=ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None,
        optimizers=build_optimizers(
            model,
            optimizer_config.name,
            optimizer_config.learning_rate,
            optimizer_config.backbone_factor,
            optimizer_config.weight_decay,
            optimizer_config.momentum,
        ),
        loss=_build_loss(config.loss, train, ranks),
        state=TrainingState(),
    )


def _open_split(config: DataConfig, split: str, console: Console) -> Split:
    if config.root is None:
        raise ConfigError("data.root is not set: add data.root=FOLDER (or a dataset file)")
    dataset = open_dataset(config.root, split)
    with console.status(f"checking the {len(dataset)} images of {split}"):
        return Split(dataset, scan_dataset(dataset))


def _build_loss(config: LossConfig, train: Split, ranks: Ranks) -> SegmentationLoss:
    rules = {"enet": enet_weights, "median_frequency": median_frequency_weights}
    weights = None
    if config.class_weights != "none":
        weights = rules[config.class_weights](train.scan).to(ranks.device)
    ignore_index = train.dataset.classes.ignore_index
    return SegmentationLoss(ignore_index, weights, config.ohem, config.dice, config.lovasz, config.auxiliary)


def model_info(config: TrainingConfig, dataset: SegmentationDataset) -> ModelInfo:
    """Returns what the run's network has to say about itself."""
    return ModelInfo(
        name=config.model.name,
        parts=config.model.parts(),
        class_names=dataset.classes.names,
        palette=dataset.classes.palette,
        ignore_index=dataset.classes.ignore_index,
        image_mean=config.data.image_mean,
        image_std=config.data.image_std,
    )
