"""Pinned sizes: a change here is a change of the architecture and must be meant."""

import pytest
import torch

import exfuse
from exfuse.models.registry import count_multiply_adds, count_parameters

# name -> (parameters, multiply-adds of one 512 x 512 image), 21 classes, counted on 2026-11-22 and 2026-11-25.
PINNED = {
    "gcn_tiny": (0.51, 4.25),
    "gcn_resnet18": (11.59, 13.75),
    "gcn_resnet50": (24.77, 27.36),
    "exfuse_tiny": (0.73, 5.95),
    "exfuse_resnet18": (14.23, 16.65),
    "exfuse_resnet50": (66.12, 49.52),
    "exfuse_resnext101_rearranged": (92.94, 69.79),
}
PINNED_WIDE = {
    "gcn_resnet50": (24.77, 27.36),
    "exfuse_tiny": (11.19, 90.56),
    "exfuse_resnet18": (26.38, 104.74),
    "exfuse_resnet50": (85.05, 151.47),
    "exfuse_resnext101_rearranged": (111.87, 171.75),
}


def sizes(name: str, **options: object) -> tuple[float, float]:
    with torch.device("meta"):
        model = exfuse.create_model(name, num_classes=21, **options)
    return round(count_parameters(model) / 1e6, 2), round(count_multiply_adds(model) / 1e9, 2)


@pytest.mark.parametrize("name", PINNED)
def test_named_models_keep_their_size(name: str) -> None:
    assert sizes(name) == PINNED[name]


@pytest.mark.parametrize("name", PINNED_WIDE)
def test_wide_models_keep_their_size(name: str) -> None:
    assert sizes(name, decoder_width="wide") == PINNED_WIDE[name]
