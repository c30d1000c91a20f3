"""Which versions of an image are averaged."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which versions of an image are averaged.

    Attributes:
        scales: Factors of both sides; the image is resized bilinearly (antialiased where it shrinks), the scores back.
        flip: Whether each scale is also shown mirrored.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def passes(self) -> int:
        """Number of forward passes an image takes."""
        return len(self.scales) * (1 + self.flip)


NO_TTA = TestTimeAugmentation()
