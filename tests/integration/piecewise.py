"""The gradient of one batch by the training loop's own step, in pieces and on several processes: FOLDER.

Under torchrun each process leaves FOLDER/RANK.json. The batch has an image without labels, and others with few.
"""

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from exfuse.data.loader import Batch
from exfuse.distributed import DistContext, process_group
from exfuse.losses import SegmentationLoss
from exfuse.training.step import take_step

IMAGES = 8
WEIGHTS = {"equal": None, "weighted": torch.tensor([0.2, 3.0, 1.7], dtype=torch.float64)}
CASES = [(name, accumulation) for name, accumulation in itertools.product(WEIGHTS, (1, 2, 4))]


class Output(NamedTuple):
    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...]


class Small(nn.Module):
    """Two convolutions in float64, with auxiliary scores at strides 2 and 4, and nothing that mixes images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1).double(), nn.Conv2d(6, 3, 3, padding=1).double()

    def forward(self, images: Tensor) -> Output:
        features = self.first(images.double()).tanh()
        scores = (self.last(F.avg_pool2d(features, stride)) for stride in (2, 4))
        return Output(self.last(features), tuple(scores))


@dataclass(frozen=True)
class SmallTask:
    criterion: SegmentationLoss

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        return self.criterion(output.logits, output.auxiliary_logits, targets.long())

    def weight(self, targets: Tensor) -> Tensor:
        return self.criterion.weight(targets)


def whole_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 3, (IMAGES, 16, 16), generator=generator, dtype=torch.uint8)
    ignored = torch.rand(targets.shape, generator=generator) < torch.linspace(0, 1, IMAGES)[:, None, None]
    return Batch(images, targets.masked_fill(ignored, 255), torch.zeros(IMAGES, 2, dtype=torch.int64))


def gradient_of(weights: str, accumulation: int, dist: DistContext) -> dict[str, Any]:
    """Returns the loss and the gradient that this process has after the backward pass."""
    model = Small()
    data = SimpleNamespace(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    optimizer = SimpleNamespace(schedule="polynomial", clip_grad_norm=0)
    config = SimpleNamespace(
        gradient_accumulation=accumulation, data=data, channels_last=False, precision="fp32", seed=0,
        max_skipped_steps=0, optimizer=optimizer,
    )  # fmt: skip
    network = DistributedDataParallel(model) if dist.size > 1 else model
    # Without an optimizer the step leaves the gradients where they are.
    run: Any = SimpleNamespace(
        config=config, dist=dist, model=model, network=network, optimizers=[], ema=None, total_steps=10,
        warmup_steps=1, state=SimpleNamespace(step=0, skipped=0),
    )  # fmt: skip
    task: Any = SmallTask(SegmentationLoss(255, WEIGHTS[weights], ohem=False, terms={}, auxiliary=0.4))
    share = IMAGES // dist.size
    own = Batch(*(part[dist.rank * share : (dist.rank + 1) * share] for part in whole_batch()))
    loss = take_step(run, task, own)
    return {"loss": loss, "gradient": torch.cat([p.grad.flatten() for p in model.parameters()]).tolist()}


if __name__ == "__main__":
    with process_group() as dist:
        found = [gradient_of(name, accumulation, dist) for name, accumulation in CASES]
        (Path(sys.argv[1]) / f"{dist.rank}.json").write_text(json.dumps(found), encoding="utf-8")
