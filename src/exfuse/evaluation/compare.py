"""Comparison of two models on the same images: difference of scores, its interval, and differences per image."""

from dataclasses import dataclass
from typing import Any

from exfuse.evaluation.bootstrap import Int64Array, Interval, difference_interval, mean_iou

SCOPE = "these two trained models on images like these; other seeds may differ"


@dataclass(frozen=True)
class ImageDifference:
    """The mean IoU of both models on one image.

    Attributes:
        name: Name of the image.
        first: The first model's mean IoU on it, 0 to 1; nan if it has no labelled pixel.
        second: The second model's mean IoU.
    """

    name: str
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """The second model against the first.

    Attributes:
        first: The first model's mean IoU over the split, 0 to 1.
        second: The second model's mean IoU.
        interval: Interval of `second` minus `first`, paired over images.
        images: All images, those with the largest difference first.
    """

    first: float
    second: float
    interval: Interval
    images: tuple[ImageDifference, ...]

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return not self.interval.contains(0.0)

    def verdict(self) -> str:
        """Returns the difference in points, its interval, whether that excludes zero, and the scope of the verdict."""
        points = f"{100 * (self.second - self.first):+.2f} points"
        interval = f"{100 * self.interval.low:+.2f} to {100 * self.interval.high:+.2f}"
        return f"{points} ({interval}), {'' if self.distinguishable else 'not '}distinguishable: {SCOPE}"

    def to_json(self) -> dict[str, Any]:
        """Returns the whole comparison as JSON, with the images in the order of `images`."""
        return {
            "mean_iou": {
                "first": _known(self.first),
                "second": _known(self.second),
                "difference": _known(self.second - self.first),
            },
            "interval": self.interval.to_json(),
            "distinguishable": self.distinguishable,
            "scope": SCOPE,
            "images": [
                {"name": image.name, "first": _known(image.first), "second": _known(image.second)}
                for image in self.images
            ],
        }


def compare(names: tuple[str, ...], first: Int64Array, second: Int64Array) -> Comparison:
    """Compares the counts of two models.

    Args:
        names: Names of the N images.
        first: The first model's counts, int64 `(N, 3, K)`; see `exfuse.evaluation.bootstrap`.
        second: The second model's counts on the same images.
    """
    differences = sorted(
        (ImageDifference(*row) for row in zip(names, mean_iou(first).tolist(), mean_iou(second).tolist(), strict=True)),
        key=lambda image: -abs(image.second - image.first) if image.first == image.first else 0.0,
    )
    first_score, second_score = (float(mean_iou(counts.sum(axis=0))) for counts in (first, second))
    return Comparison(first_score, second_score, difference_interval(first[None], second[None]), tuple(differences))


def _known(value: float) -> float | None:
    return None if value != value else value
