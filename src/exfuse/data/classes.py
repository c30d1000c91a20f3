"""What the label values of a data set mean."""

from dataclasses import dataclass

Color = tuple[int, int, int]

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: One name a class, in the order of the label values.
        palette: One RGB colour (0-255) a class.
        ignore_index: The label that is no class: left out of losses and metrics.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.names)


def voc_palette(count: int) -> tuple[Color, ...]:
    """Returns the first `count` colours of PASCAL VOC's palette: the index's bits, spread over the channels."""
    return tuple(_voc_color(index) for index in range(count))


def _voc_color(index: int) -> Color:
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def numbered_classes(count: int) -> Classes:
    """Returns classes for labels that nobody has named: "class_0" and so on, in VOC's colours."""
    return Classes(tuple(f"class_{index}" for index in range(count)), voc_palette(count))


def voc_classes() -> Classes:
    """Returns PASCAL VOC's 21 classes."""
    return Classes(VOC_NAMES, voc_palette(len(VOC_NAMES)))
