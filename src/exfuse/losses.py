"""Losses on logits `(N, K, H, W)` and targets `(N, H, W)`; they exclude ignored pixels and are 0 without labelled ones.

A batch may be computed in pieces, one after the other or on several processes. Its loss is then the mean of the
pieces' losses, each weighted by the piece's `labelled_weight`. For cross-entropy this equals the loss of the whole
batch exactly: the same sum over pixels, divided by the same sum of weights. OHEM, Dice and Lovász are not sums over
pixels, because hard pixels and present classes are determined per piece; their mean only approximates the loss of the
whole batch.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from exfuse.data.stats import DatasetStats
from exfuse.errors import ConfigError


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Returns the mean cross-entropy over labelled pixels, each weighted by its class's weight.

    Args:
        logits: `(N, K, H, W)`.
        target: int64 `(N, H, W)`.
        ignore_index: Target label to exclude.
        class_weights: `(K,)`, or None for equal weights.
    """
    losses = F.cross_entropy(logits, target, weight=class_weights, ignore_index=ignore_index, reduction="sum")
    return losses / labelled_weight(target, ignore_index, class_weights).clamp(min=1e-12)


def labelled_weight(target: Tensor, ignore_index: int, class_weights: Tensor | None = None) -> Tensor:
    """Returns the sum of the labelled pixels' class weights, or their number without class weights; a scalar.

    Args:
        target: Integers `(N, H, W)`.
        ignore_index: Target label to exclude.
        class_weights: `(K,)`, or None for equal weights.
    """
    labelled = target != ignore_index
    if class_weights is None:
        return labelled.sum()
    return class_weights[target.long().masked_fill(~labelled, 0)].mul(labelled).sum()


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
) -> Tensor:
    """Returns the cross-entropy over hard pixels: those whose true class has a probability of at most `threshold`.

    At least the hardest `min_kept` of the labelled pixels are kept (online hard example mining, Shrivastava et al.,
    CVPR 2016, in the form usual for segmentation).

    Args:
        logits: `(N, K, H, W)`.
        target: int64 `(N, H, W)`.
        ignore_index: Target label to exclude.
        class_weights: `(K,)`, or None for equal weights.
        threshold: Probability above which a pixel is easy, 0 to 1.
        min_kept: Fraction of the labelled pixels that is always kept, 0 to 1.
    """
    with torch.no_grad():
        labelled = target != ignore_index
        index = target.masked_fill(~labelled, 0)[:, None]
        probability = logits.softmax(dim=1).gather(1, index)[:, 0]
        known = probability[labelled]
        if known.numel():
            kept = min(known.numel(), max(1, math.ceil(min_kept * known.numel())))
            threshold = max(threshold, float(known.kthvalue(kept).values))
        hard = target.masked_fill(probability > threshold, ignore_index)
    return cross_entropy(logits, hard, ignore_index, class_weights)


def dice_loss(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Returns 1 - the mean soft Dice coefficient over the classes in the batch (Milletari et al., 3DV 2016).

    Args:
        logits: `(N, K, H, W)`.
        target: int64 `(N, H, W)`.
        ignore_index: Target label to exclude.
    """
    num_classes = logits.shape[1]
    labelled = (target != ignore_index)[:, None]
    truth = F.one_hot(target.masked_fill(target == ignore_index, 0), num_classes).movedim(-1, 1)
    truth = truth.to(logits.dtype) * labelled
    probability = logits.softmax(dim=1) * labelled
    overlap = (probability * truth).sum(dim=(0, 2, 3))
    sizes = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = (truth.sum(dim=(0, 2, 3)) > 0).to(logits.dtype)
    losses = 1 - 2 * overlap / sizes.clamp(min=1e-12)
    return (losses * present).sum() / present.sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Returns the Lovász-Softmax loss, averaged over the classes in the batch (Berman et al., CVPR 2018).

    Args:
        logits: `(N, K, H, W)`.
        target: int64 `(N, H, W)`.
        ignore_index: Target label to exclude.
    """
    labelled = target != ignore_index
    probability = logits.softmax(dim=1).movedim(1, -1)[labelled]
    truth = target[labelled]
    losses = []
    for index in range(logits.shape[1]):
        foreground = (truth == index).to(logits.dtype)
        if not foreground.any():
            continue
        errors, order = (foreground - probability[:, index]).abs().sort(descending=True)
        losses.append(errors @ _jaccard_gradient(foreground[order]))
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0


def _jaccard_gradient(foreground: Tensor) -> Tensor:
    """Returns the increments of the Jaccard loss as pixels, sorted by error, become wrong one by one (algorithm 1)."""
    total = foreground.sum()
    intersection = total - foreground.cumsum(0)
    union = total + (1 - foreground).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


LossTerm = Callable[[Tensor, Tensor, int], Tensor]  # (logits, target, ignore_index) -> loss

# Losses that a recipe can add to the cross-entropy, with `loss.NAME` as the weight.
LOSSES: dict[str, LossTerm] = {"dice": dice_loss, "lovasz": lovasz_softmax}


def register_loss(name: str, loss: LossTerm) -> None:
    """Registers a loss, which recipes then add with a weight: `loss.NAME=0.5`.

    Args:
        name: Lower-case letters, digits and underscores; not taken yet.
        loss: Called with logits `(N, K, H, W)`, int64 targets `(N, H, W)` and the ignored label; returns a scalar: the
            mean over the labelled pixels, or 0 with a gradient if there are none.

    Raises:
        ConfigError: If the name is taken or contains other characters.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(f"{name!r}: the name of a loss must consist of lower-case letters, digits and underscores")
    if name in LOSSES or name in ("class_weights", "ohem", "auxiliary"):
        raise ConfigError(f"loss.{name} is a key already; choose another name")
    LOSSES[name] = loss


@dataclass(frozen=True)
class SegmentationLoss:
    """A weighted sum of losses on the prediction, plus cross-entropy on the auxiliary predictions.

    Each is a mean over the labelled pixels passed in; for batches computed in pieces, see the top of this module.

    Attributes:
        ignore_index: Target label to exclude.
        class_weights: `(K,)` for the cross-entropies, or None.
        ohem: Whether the cross-entropy of the prediction uses hard pixels only.
        terms: Name of each further loss in `LOSSES` -> its weight.
        auxiliary: Weight of each auxiliary prediction.
    """

    ignore_index: int
    class_weights: Tensor | None
    ohem: bool
    terms: Mapping[str, float]
    auxiliary: float

    def __call__(self, logits: Tensor, auxiliary_logits: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """Returns the loss of a batch, a scalar.

        Args:
            logits: `(N, K, H, W)`.
            auxiliary_logits: Logits `(N, K, H', W')` at any strides, upsampled bilinearly to the size of the target.
            target: int64 `(N, H, W)`.
        """
        main = ohem_cross_entropy if self.ohem else cross_entropy
        loss = main(logits, target, self.ignore_index, self.class_weights)
        for name, weight in self.terms.items():
            if weight:
                loss = loss + weight * LOSSES[name](logits, target, self.ignore_index)
        for scores in auxiliary_logits:
            enlarged = F.interpolate(scores, size=target.shape[-2:], mode="bilinear", align_corners=False)
            loss = loss + self.auxiliary * cross_entropy(enlarged, target, self.ignore_index, self.class_weights)
        return loss

    def weight(self, target: Tensor) -> Tensor:
        """Returns the weight of a piece's loss within its batch, a scalar; see `labelled_weight`.

        Args:
            target: Integers `(N, H, W)`.
        """
        return labelled_weight(target, self.ignore_index, self.class_weights)


def enet_weights(stats: DatasetStats) -> Tensor:
    """Returns class weights 1 / ln(1.02 + p) (Paszke et al., ENet, section 5.2).

    p is the class's fraction of the labelled pixels.
    """
    fraction = stats.pixel_counts / max(stats.pixel_counts.sum(), 1)
    return torch.tensor(1 / np.log(1.02 + fraction), dtype=torch.float32)


def median_frequency_weights(stats: DatasetStats) -> Tensor:
    """Returns class weights median(f) / f (Eigen & Fergus, ICCV 2015).

    f is the class's fraction of the labelled pixels of those images that it occurs in. Classes that do not occur have
    weight 0.
    """
    occurs = stats.pixel_counts > 0
    frequency = stats.pixel_counts[occurs] / stats.containing_image_pixels[occurs]
    weights = np.zeros(len(stats.pixel_counts))
    if occurs.any():
        weights[occurs] = np.median(frequency) / frequency
    return torch.tensor(weights, dtype=torch.float32)


def root_median_frequency_weights(stats: DatasetStats) -> Tensor:
    """Returns the square roots of `median_frequency_weights`: on a logarithmic scale, halfway to equal weights."""
    return median_frequency_weights(stats).sqrt()


# Functions that compute class weights from a data set's statistics, by their names in `loss.class_weights`.
CLASS_WEIGHTS: dict[str, Callable[[DatasetStats], Tensor]] = {
    "enet": enet_weights,
    "median_frequency": median_frequency_weights,
    "root_median_frequency": root_median_frequency_weights,
}
