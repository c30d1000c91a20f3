"""Batches of a data set, as training reads them."""

import torch

from exfuse.data.augment import Augmentation
from exfuse.data.loader import Batch

AUGMENTATION = Augmentation(
    crop_size=(64, 96),
    scale=(0.5, 2.0),
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    fill=(100, 110, 120),
    ignore_index=255,
)


def assert_same_batches(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        for mine, yours in zip(one, other, strict=True):
            assert mine.dtype == yours.dtype
            assert torch.equal(mine, yours)
