"""Test-time augmentation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TestTimeAugmentation:
    """The scaled and flipped versions of an image whose probabilities are averaged.

    Attributes:
        scales: Factors for both sides; images are resized bilinearly (antialiased if they shrink), and scores back.
        flip: Whether to add a horizontally flipped version of each scale.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> int:
        """Number of forward passes per image."""
        return len(self.scales) * (1 + self.flip)


NO_TTA = TestTimeAugmentation()
