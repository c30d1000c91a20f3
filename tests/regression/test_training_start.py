"""Trained from scratch, the product of the semantic embedding must not make the loss jump."""

import itertools

import pytest
import torch

from exfuse.data.synthetic import make_scene
from exfuse.losses import cross_entropy
from exfuse.models.registry import create_model


def first_losses(normalize: bool, steps: int = 40) -> list[float]:
    torch.manual_seed(0)
    model = create_model("exfuse_tiny", num_classes=7, decoder="stride4", semantic_embedding_norm=normalize)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scenes = [make_scene(seed, height=96, width=96) for seed in range(8)]
    images = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]).float() / 64 - 2
    target = torch.stack([torch.from_numpy(scene.mask) for scene in scenes]).long()
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 10)
        loss = cross_entropy(model(images).logits, target, ignore_index=255)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def largest_jump(losses: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(losses))


def test_with_batch_norm_the_loss_falls_without_jumps_after_the_warm_up() -> None:
    losses = first_losses(normalize=True)
    assert largest_jump(losses[10:]) < 0.1
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.nightly
def test_the_plain_product_is_wilder() -> None:
    plain, normalized = first_losses(normalize=False), first_losses(normalize=True)
    assert largest_jump(plain[10:]) > 2 * largest_jump(normalized[10:])
