import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from exfuse.data.stats import DatasetStats
from exfuse.losses import (
    SegmentationLoss,
    cross_entropy,
    dice_loss,
    enet_weights,
    lovasz_softmax,
    median_frequency_weights,
    ohem_cross_entropy,
    root_median_frequency_weights,
)

IGNORE = 255
WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 3.0], dtype=torch.float64)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, target: cross_entropy(logits, target, IGNORE),
    "weighted_cross_entropy": lambda logits, target: cross_entropy(logits, target, IGNORE, WEIGHTS.to(logits.dtype)),
    "ohem": lambda logits, target: ohem_cross_entropy(logits, target, IGNORE),
    "weighted_ohem": lambda logits, target: ohem_cross_entropy(logits, target, IGNORE, WEIGHTS.to(logits.dtype)),
    "dice": lambda logits, target: dice_loss(logits, target, IGNORE),
    "lovasz": lambda logits, target: lovasz_softmax(logits, target, IGNORE),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
SEEDS = pytest.mark.parametrize("seed", range(5))


def random_batch(seed: int, num_classes: int = 4, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Returns float64 scores and targets; 16 of the 96 pixels are ignored, and from seed 3 on one class is absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, num_classes, 6, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, num_classes, (2, 6, 8), generator=generator)
    if seed >= 3:
        target[target == 1] = 0
    target.view(-1)[torch.randperm(96, generator=generator)[:16]] = IGNORE
    return logits, target


def labelled_pixels(logits: Tensor, target: Tensor) -> list[tuple[list[float], int]]:
    """Returns the class probabilities and the label of each pixel that is not ignored."""
    pixels = []
    for image, row, column in np.ndindex(*target.shape):
        label = int(target[image, row, column])
        if label == IGNORE:
            continue
        scores = logits[image, :, row, column].tolist()
        exponentials = [math.exp(score - max(scores)) for score in scores]
        pixels.append(([value / sum(exponentials) for value in exponentials], label))
    return pixels


def mean_negative_log(pixels: list[tuple[list[float], int]], weights: list[float]) -> float:
    total = sum(weights[label] * -math.log(probabilities[label]) for probabilities, label in pixels)
    return total / sum(weights[label] for _, label in pixels)


def hard_pixels(
    pixels: list[tuple[list[float], int]], threshold: float, min_kept: float
) -> list[tuple[list[float], int]]:
    ordered = sorted(pixels, key=lambda pixel: pixel[0][pixel[1]])
    below = sum(probabilities[label] < threshold for probabilities, label in ordered)
    return ordered[: max(below, round(min_kept * len(ordered)))]


def dice_by_loops(logits: Tensor, target: Tensor) -> float:
    pixels = labelled_pixels(logits, target)
    losses = []
    for index in sorted({label for _, label in pixels}):
        overlap = sum(probabilities[index] for probabilities, label in pixels if label == index)
        size = sum(probabilities[index] for probabilities, _ in pixels) + sum(label == index for _, label in pixels)
        losses.append(1 - 2 * overlap / size)
    return sum(losses) / len(losses)


def jaccard_loss(mispredicted: set[int], foreground: set[int]) -> float:
    """Berman et al., equation 5: the mispredicted pixels' share of their union with the class's own pixels."""
    return len(mispredicted) / len(foreground | mispredicted) if mispredicted else 0.0


def lovasz_by_sets(logits: Tensor, target: Tensor) -> float:
    """Berman et al., equations 8 and 9 (the Lovász extension) and 11 (the errors), averaged over the classes."""
    pixels = labelled_pixels(logits, target)
    losses = []
    for index in sorted({label for _, label in pixels}):
        foreground = {place for place, (_, label) in enumerate(pixels) if label == index}
        errors = [
            1 - probabilities[index] if place in foreground else probabilities[index]
            for place, (probabilities, _) in enumerate(pixels)
        ]
        loss, wrong = 0.0, set()
        for place in sorted(range(len(pixels)), key=lambda place: -errors[place]):
            loss += errors[place] * (jaccard_loss(wrong | {place}, foreground) - jaccard_loss(wrong, foreground))
            wrong.add(place)
        losses.append(loss)
    return sum(losses) / len(losses)


def enlarged_by_loops(scores: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of pixels that are areas, not points: borders are repeated outwards."""
    result = torch.zeros(*scores.shape[:2], height, width, dtype=scores.dtype)
    for row, column in np.ndindex(height, width):
        y = min(max((row + 0.5) * scores.shape[2] / height - 0.5, 0), scores.shape[2] - 1)
        x = min(max((column + 0.5) * scores.shape[3] / width - 0.5, 0), scores.shape[3] - 1)
        for i, j in np.ndindex(scores.shape[2], scores.shape[3]):
            result[..., row, column] += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * scores[..., i, j]
    return result


@SEEDS
def test_cross_entropy_is_the_mean_negative_log_probability(seed: int):
    logits, target = random_batch(seed)
    expected = mean_negative_log(labelled_pixels(logits, target), [1.0] * 4)
    assert cross_entropy(logits, target, IGNORE).item() == pytest.approx(expected, abs=1e-12)


@SEEDS
def test_weighted_cross_entropy_is_the_mean_weighted_by_the_pixels_classes(seed: int):
    logits, target = random_batch(seed)
    expected = mean_negative_log(labelled_pixels(logits, target), WEIGHTS.tolist())
    assert cross_entropy(logits, target, IGNORE, WEIGHTS).item() == pytest.approx(expected, abs=1e-12)


def test_classes_of_weight_zero_count_for_nothing():
    logits, target = random_batch(0)
    only_two = target.where(target == 2, IGNORE)
    weights = torch.tensor([0.0, 0.0, 1.7, 0.0], dtype=torch.float64)
    weighted = cross_entropy(logits, target, IGNORE, weights)
    assert weighted.item() == pytest.approx(cross_entropy(logits, only_two, IGNORE).item(), abs=1e-12)
    assert cross_entropy(logits, target, IGNORE, torch.zeros(4, dtype=torch.float64)) == 0


@SEEDS
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("min_kept", [1 / 16, 0.3, 1.0])
def test_ohem_is_the_cross_entropy_of_the_hard_pixels(
    seed: int, weights: Tensor | None, threshold: float, min_kept: float
):
    logits, target = random_batch(seed)
    hard = hard_pixels(labelled_pixels(logits, target), threshold, min_kept)
    expected = mean_negative_log(hard, [1.0] * 4 if weights is None else weights.tolist())
    result = ohem_cross_entropy(logits, target, IGNORE, weights, threshold, min_kept)
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_ohem_sends_gradients_to_hard_pixels_alone():
    logits, target = random_batch(0)
    logits.requires_grad_()
    ohem_cross_entropy(logits, target, IGNORE, threshold=0.7).backward()
    probability = logits.detach().softmax(1).gather(1, target.where(target != IGNORE, 0)[:, None])[:, 0]
    hard = (target != IGNORE) & (probability < 0.7)
    assert 0 < hard.sum() < (target != IGNORE).sum()
    assert torch.equal((logits.grad != 0).any(dim=1), hard)


@pytest.mark.parametrize(
    ("pixels", "min_kept", "kept"), [(64, 1 / 16, 4), (24, 1 / 16, 2), (100, 0.29, 29), (5, 0.1, 1)]
)
def test_ohem_keeps_at_least_its_share_of_easy_pixels(pixels: int, min_kept: float, kept: int):
    target = torch.arange(pixels).view(1, 1, pixels) % 2
    confidence = torch.linspace(5, 9, pixels, dtype=torch.float64).view(1, 1, pixels)  # all above 0.99
    logits = torch.where(torch.stack([target == 0, target == 1], dim=1), confidence[:, None], 0.0).requires_grad_()
    ohem_cross_entropy(logits, target, IGNORE, min_kept=min_kept).backward()
    assert (logits.grad != 0).any(dim=1).flatten().tolist() == [True] * kept + [False] * (pixels - kept)


@SEEDS
def test_dice_is_that_of_loops_over_classes_and_pixels(seed: int):
    logits, target = random_batch(seed)
    assert dice_loss(logits, target, IGNORE).item() == pytest.approx(dice_by_loops(logits, target), abs=1e-12)


@SEEDS
@pytest.mark.parametrize("num_classes", [2, 4])
def test_lovasz_is_the_jaccard_loss_along_the_sorted_errors(seed: int, num_classes: int):
    logits, target = random_batch(seed, num_classes)
    result = lovasz_softmax(logits, target, IGNORE).item()
    assert result == pytest.approx(lovasz_by_sets(logits, target), abs=1e-12)


def test_lovasz_is_the_jaccard_loss_itself_where_errors_are_all_or_nothing():
    # Of four pixels of class 0 one is taken for class 1, of three of class 1 two are taken for class 0.
    target = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, IGNORE]]])
    predicted = torch.tensor([[[0, 0, 0, 1, 1, 0, 0, 0]]])
    logits = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).double() * 1e4
    expected = ((1 - 3 / 6) + (1 - 1 / 4)) / 2
    assert lovasz_softmax(logits, target, IGNORE).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "worst"), [("dice", 1.0), ("lovasz", 1.0), ("cross_entropy", 100.0), ("ohem", 100.0)])
def test_losses_lie_between_those_of_a_perfect_and_an_entirely_wrong_prediction(name: str, worst: float):
    _, target = random_batch(0)
    truth = torch.nn.functional.one_hot(target.where(target != IGNORE, 0), 4).movedim(-1, 1).double()
    assert LOSSES[name](100 * truth, target).item() == pytest.approx(0, abs=1e-12)
    assert LOSSES[name](100 * truth.roll(1, dims=1), target).item() == pytest.approx(worst, abs=1e-12)


@EVERY_LOSS
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]):
    logits, target = random_batch(3)
    logits, target = logits[:1, :, :3, :4].clone().requires_grad_(), target[:1, :3, :4]
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), (logits,))


@EVERY_LOSS
def test_ignored_pixels_have_no_say(loss: Callable[[Tensor, Tensor], Tensor]):
    logits, target = random_batch(0)
    ignored = (target == IGNORE)[:, None]
    other = torch.where(ignored, 30 * torch.randn(logits.shape, dtype=torch.float64), logits)
    assert loss(other, target).item() == pytest.approx(loss(logits, target).item(), abs=1e-14)
    logits.requires_grad_()
    loss(logits, target).backward()
    assert (logits.grad[ignored.expand_as(logits)] == 0).all()
    assert (logits.grad != 0).any()


@EVERY_LOSS
def test_a_batch_without_labels_has_no_loss_and_no_gradient(loss: Callable[[Tensor, Tensor], Tensor]):
    logits = random_batch(0)[0].float().requires_grad_()
    result = loss(logits, torch.full((2, 6, 8), IGNORE))
    assert result.shape == ()
    assert result.item() == 0
    result.backward()
    assert (logits.grad == 0).all()


@EVERY_LOSS
def test_extreme_scores_give_finite_losses_and_gradients(loss: Callable[[Tensor, Tensor], Tensor]):
    logits, target = random_batch(0, spread=1e4)
    logits = logits.float().requires_grad_()
    result = loss(logits, target)
    result.backward()
    assert result.isfinite()
    assert result > 0
    assert logits.grad.isfinite().all()


@EVERY_LOSS
@SEEDS
def test_single_precision_is_close_to_double(loss: Callable[[Tensor, Tensor], Tensor], seed: int):
    logits, target = random_batch(seed)
    result = loss(logits.float(), target)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(loss(logits, target).item(), rel=1e-5)


@pytest.mark.parametrize("ohem", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_the_segmentation_loss_is_the_sum_of_its_parts(ohem: bool, weights: Tensor | None):
    logits, target = random_batch(1)
    auxiliary = (random_batch(7)[0][..., :3, :4], random_batch(8)[0][..., :2, :2])
    loss = SegmentationLoss(IGNORE, weights, ohem, {"dice": 0.5, "lovasz": 0.25}, auxiliary=0.4)
    values = [1.0] * 4 if weights is None else weights.tolist()
    pixels = labelled_pixels(logits, target)
    expected = mean_negative_log(hard_pixels(pixels, 0.7, 1 / 16) if ohem else pixels, values)
    expected += 0.5 * dice_by_loops(logits, target) + 0.25 * lovasz_by_sets(logits, target)
    for scores in auxiliary:
        expected += 0.4 * mean_negative_log(labelled_pixels(enlarged_by_loops(scores, 6, 8), target), values)
    assert loss(logits, auxiliary, target).item() == pytest.approx(expected, abs=1e-12)


def test_parts_of_weight_zero_are_left_out():
    logits, target = random_batch(1)
    loss = SegmentationLoss(IGNORE, None, ohem=False, terms={}, auxiliary=0.4)
    assert torch.equal(loss(logits, (), target), cross_entropy(logits, target, IGNORE))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_pieces_count_by_their_labelled_pixels(weights: Tensor | None):
    logits, target = (torch.cat(parts) for parts in zip(*(random_batch(seed) for seed in range(3)), strict=True))
    target[0] = IGNORE
    target[1:3, :4] = IGNORE
    loss = SegmentationLoss(IGNORE, weights, ohem=False, terms={}, auxiliary=0.4)

    def gradient(sizes: list[int]) -> tuple[float, Tensor]:
        scores, total = logits.clone().requires_grad_(), 0.0
        pieces = list(zip(scores.split(sizes), target.split(sizes), strict=True))
        for piece, labels in pieces:
            share = loss.weight(labels) / sum(loss.weight(labels) for _, labels in pieces).double()
            value = loss(piece, (piece[..., ::2, ::2], piece[..., ::4, ::4]), labels) * share
            value.backward()
            total += value.item()
        return total, scores.grad

    value, expected = gradient([6])
    for sizes in ([3, 3], [1, 5], [1] * 6):
        in_pieces, found = gradient(sizes)
        assert in_pieces == pytest.approx(value, abs=1e-12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert loss.weight(target[:1]) == 0


def stats_of(pixels: list[int], containing_image_pixels: list[int]) -> DatasetStats:
    return DatasetStats(np.array(pixels), np.array(containing_image_pixels), np.array([1] * len(pixels)), 7, "")


def test_enet_weights_worked_out_by_hand():
    # Shares 0.5, 0.3, 0.2 and 0: 1 / ln 1.52, 1 / ln 1.32, 1 / ln 1.22, 1 / ln 1.02.
    weights = enet_weights(stats_of([500, 300, 200, 0], [1000, 1000, 400, 0]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([2.388286, 3.601894, 5.028895, 50.498350], rel=1e-6)


def test_median_frequency_weights_worked_out_by_hand():
    # Frequencies 0.6, 0.3 and 0.25, of which 0.3 is the median; the last class does not occur.
    weights = median_frequency_weights(stats_of([60, 30, 10, 0], [100, 100, 40, 0]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([0.5, 1.0, 1.2, 0.0], rel=1e-6)


def test_root_median_frequency_weights_worked_out_by_hand():
    weights = root_median_frequency_weights(stats_of([60, 30, 10, 0], [100, 100, 40, 0]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([0.707107, 1.0, 1.095445, 0.0], rel=1e-6)


@pytest.mark.parametrize("rule", [enet_weights, median_frequency_weights, root_median_frequency_weights])
def test_weights_of_a_split_without_labels_are_finite(rule: Callable[[DatasetStats], Tensor]):
    weights = rule(stats_of([0, 0, 0], [0, 0, 0]))
    assert weights.shape == (3,)
    assert weights.isfinite().all()
