"""Pre-training a backbone on classification, with or without semantic supervision (ExFuse)."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.atomic_io import read_file
from exfuse.data.image_folder import (
    ClassificationAugmentation,
    ClassifiedImage,
    ImageFolder,
    central_view,
    check_image_folder,
    open_image_folder,
)
from exfuse.data.loader import AugmentedDataset
from exfuse.distributed import DistContext, all_reduce_sum
from exfuse.errors import ConfigError, DataError, did_you_mean
from exfuse.models.backbones import BACKBONES
from exfuse.models.preprocessing import normalize
from exfuse.models.semantic_supervision import STAGES, ClassifierOutput, FourBools, SemanticSupervisionClassifier
from exfuse.models.storage.backbone_weights import CLASSIFIER_TYPE
from exfuse.models.storage.folder import CONFIG_FILE, WRONG_CONTENT, unreadable
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.training.config import ClassificationDataConfig, PretrainingConfig
from exfuse.training.lifecycle import run_training
from exfuse.training.run import check_data, start_run, training_session
from exfuse.training.task import Evaluation


class HeadAccuracy(NamedTuple):
    """Accuracy of a head on the validation split.

    Attributes:
        head: "res2" to "res5" for an auxiliary head, "final" for the classifier on the last stage.
        top1: Fraction of images whose true class has the highest score, 0 to 1.
        top5: Fraction of images whose true class is among the five highest scores, 0 to 1.
    """

    head: str
    top1: float
    top5: float


def pretrain(config: PretrainingConfig, resume: bool, console: Console) -> list[HeadAccuracy]:
    """Trains a classifier; the best one is saved in `backbone/` of the run folder, for `model.backbone_weights`.

    Under torchrun every process calls this.

    Args:
        config: The recipe.
        resume: Whether to continue from the latest checkpoint in the run folder, if there is one.
        console: Prints progress.

    Returns:
        The accuracies of the best network, one per head.

    Raises:
        ConfigError: If the configuration is invalid, or the run folder contains another run.
        DataError: If the data is invalid; headers are checked before training starts, pixels when they are read.
        CheckpointError: If a checkpoint cannot be written or, with `resume`, read.
        TrainingError: If the loss or the gradient is not finite, or memory is exhausted.
        Interrupted: After Ctrl-C or SIGTERM, once the last finished step is saved.
    """
    with training_session(config, resume, console) as (dist, stop, output):
        task, model = set_up(config, dist, output)
        run_training(start_run(config, model, len(task.train), dist), task, resume, stop, output)
        folder = config.output / task.best_folder
        try:
            content = json.loads(read_file(folder / CONFIG_FILE))
            return [HeadAccuracy(**row) for row in content["metrics"]["heads"]]
        except (OSError, *WRONG_CONTENT) as error:
            raise unreadable(folder, error) from error


@dataclass(frozen=True)
class ClassificationTask:
    """Image classification; a `Task`."""

    config: PretrainingConfig
    dist: DistContext
    train: ImageFolder
    val: ImageFolder
    best_folder: str = "backbone"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of all files; reading their contents would take too long."""
        return _fingerprint(self.train, self.val)

    def samples(self) -> AugmentedDataset[ClassifiedImage]:
        """Returns the augmented training samples."""
        data = self.config.data
        augmentation = ClassificationAugmentation(
            crop_size=data.crop_size,
            area=data.area,
            flip=data.flip,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
        )
        return AugmentedDataset(self.train, augmentation, self.config.seed)

    def loss(self, output: ClassifierOutput, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of the last stage plus the weighted cross-entropies of the auxiliary heads."""
        model = self.config.model
        total = F.cross_entropy(output.logits, targets, label_smoothing=model.label_smoothing)
        weights = [weight for weight in model.head_weights if weight > 0]
        for weight, logits in zip(weights, output.auxiliary_logits, strict=True):
            total = total + weight * F.cross_entropy(logits, targets, label_smoothing=model.label_smoothing)
        return total

    def weight(self, targets: Tensor) -> Tensor:
        """Returns the number of images."""
        return torch.tensor(len(targets), device=targets.device)

    def evaluate(self, model: nn.Module, step: int, check_stop: Callable[[], None]) -> Evaluation:
        """Scores the network by the last stage's top-1 accuracy on the validation split."""
        rows = count_correct(model, self.val, self.config, self.dist, check_stop)
        final = rows[-1]
        values = {f"{row.head}_{kind}": getattr(row, kind) for row in rows for kind in ("top1", "top5")}

        def save(folder: Path, chosen: bool) -> None:
            save_pretrained(folder, model, self._describe(rows, step), self._card(rows))

        return Evaluation(final.top1, "top-1", values, save)

    def _describe(self, rows: list[HeadAccuracy], step: int) -> dict[str, Any]:
        config = self.config
        return {
            "model_type": CLASSIFIER_TYPE,
            "architecture": {
                "name": config.model.backbone,
                "num_classes": len(self.train.class_names),
                "with_head": with_head(config),
                "head_hidden_width": config.model.head_hidden_width,
            },
            "id2label": {str(index): name for index, name in enumerate(self.train.class_names)},
            "image_mean": list(config.data.image_mean),
            "image_std": list(config.data.image_std),
            "metrics": {
                "heads": [row._asdict() for row in rows],
                "protocol": {
                    "data": str(self.val.root),
                    "split": self.val.split,
                    "images": len(self.val),
                    "resize": f"shorter side to {config.data.resize}, central crop {list(config.data.crop_size)}",
                    "precision": config.precision,
                    "step": step,
                },
            },
        }

    def _card(self, rows: list[HeadAccuracy]) -> str:
        table = "\n".join(f"| {row.head} | {100 * row.top1:.2f} | {100 * row.top5:.2f} |" for row in rows)
        return (
            f"# {self.config.model.backbone}, pre-trained on {len(self.train.class_names)} classes\n\n"
            "Use it with `exfuse train RECIPE model.backbone_weights=THIS_FOLDER`.\n\n"
            f"| head | top-1 | top-5 |\n|---|---|---|\n{table}\n"
        )


def set_up(
    config: PretrainingConfig, dist: DistContext, console: Console
) -> tuple[ClassificationTask, SemanticSupervisionClassifier]:
    """Opens and checks the data and builds the network.

    Raises:
        ConfigError: If the backbone is unknown or `data.root` is not set.
        DataError: If a split is invalid, the classes of the two splits differ, or the processes read different data.
    """
    torch.manual_seed(config.seed)
    train, val = (
        _open_split(config.data, split, console) for split in (config.data.train_split, config.data.val_split)
    )
    if train.class_names != val.class_names:
        different = sorted(set(train.class_names) ^ set(val.class_names))
        raise DataError(
            f"{train.root}: classes in only one of {config.data.train_split} and {config.data.val_split}: "
            f"{', '.join(different[:5])}"
        )
    facts: dict[str, object] = {"classes": ", ".join(train.class_names)}
    for part, split in (("training", train), ("validation", val)):
        facts |= {f"{part} images": len(split), f"{part} fingerprint": _fingerprint(split)[:16]}
    check_data(facts, dist)
    name = config.model.backbone
    if name not in BACKBONES:
        raise ConfigError(f"model.backbone: unknown backbone {name!r}; {did_you_mean(name, BACKBONES)}")
    model = SemanticSupervisionClassifier(
        BACKBONES[name](), len(train.class_names), with_head(config), config.model.head_hidden_width
    )
    return ClassificationTask(config, dist, train, val), model


def _fingerprint(*splits: ImageFolder) -> str:
    hashed = hashlib.sha256()
    for split in splits:
        for path, label in split.entries:
            hashed.update(os.fsencode(f"{path.relative_to(split.root)} {label} {path.stat().st_size}\n"))
    return hashed.hexdigest()


def with_head(config: PretrainingConfig) -> FourBools:
    """Returns which of the stages res-2 to res-5 have an auxiliary head: those with a weight above 0."""
    w2, w3, w4, w5 = config.model.head_weights
    return w2 > 0, w3 > 0, w4 > 0, w5 > 0


def _open_split(config: ClassificationDataConfig, split: str, console: Console) -> ImageFolder:
    if config.root is None:
        raise ConfigError("data.root is not set; add data.root=FOLDER")
    dataset = open_image_folder(config.root, split)
    with console.status(f"checking the {len(dataset)} images of {split}"):
        check_image_folder(dataset)
    return dataset


@torch.inference_mode()
def count_correct(
    model: nn.Module,
    val: ImageFolder,
    config: PretrainingConfig,
    dist: DistContext,
    check_stop: Callable[[], None] = lambda: None,
) -> list[HeadAccuracy]:
    """Returns the accuracy of each head over a split from exact counts, auxiliary heads first.

    Args:
        model: A `SemanticSupervisionClassifier`, or a copy of one.
        val: The split.
        config: Provides batch size, resize, crop, normalisation and precision.
        dist: This process's context; of n processes, each scores every n-th image.
        check_stop: Called before each batch, equally often in every process.
    """
    was_training = model.training
    model.eval()
    heads = [stage for stage, head in zip(STAGES, with_head(config), strict=True) if head] + ["final"]
    correct = torch.zeros(len(heads), 2, dtype=torch.int64)
    for indices in _shards_of_batches(len(val), config.batch_size, dist):
        check_stop()
        if not indices:
            continue
        images, labels = _views(val, indices, config)
        pixels = normalize(images.to(dist.device), config.data.image_mean, config.data.image_std)
        with torch.autocast(dist.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            output = model(pixels.contiguous(memory_format=torch.channels_last))
        for row, logits in enumerate((*output.auxiliary_logits, output.logits)):
            best = logits.topk(min(5, logits.shape[1])).indices.cpu() == labels[:, None]
            correct[row] += torch.stack([best[:, 0].sum(), best.sum()])
    model.train(was_training)
    accuracies = all_reduce_sum(correct, dist) / len(val)
    return [HeadAccuracy(head, *row) for head, row in zip(heads, accuracies.tolist(), strict=True)]


def _shards_of_batches(images: int, batch_size: int, dist: DistContext) -> Iterator[range]:
    """Yields this process's shard of each batch; all processes get equally many, of which the last may be empty."""
    for start in range(0, images, batch_size * dist.size):
        yield range(start + dist.rank, min(images, start + batch_size * dist.size), dist.size)


def _views(val: ImageFolder, indices: range, config: PretrainingConfig) -> tuple[Tensor, Tensor]:
    """Returns central crops, uint8 `(N, 3, H, W)`, and their classes, int64 `(N,)`."""
    samples = [val[index] for index in indices]
    views = np.stack([central_view(s.image, config.data.resize, config.data.crop_size) for s in samples])
    return torch.from_numpy(views).permute(0, 3, 1, 2), torch.tensor([sample.label for sample in samples])
