"""The classes of a data set: names, colours and the ignored label."""

from collections import Counter
from dataclasses import dataclass

from exfuse.errors import DataError, shown

Color = tuple[int, int, int]

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
MAX_CLASS_NAME = 200  # characters; ADE20K's longest has 103


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: One name per class, in the order of the label values.
        palette: One RGB colour (0-255) per class.
        ignore_index: The label that is not a class; it is excluded from losses and metrics.

    Raises:
        DataError: If there are not 2 to 255 classes, a name or colour is invalid, two names are equal, or
            `ignore_index` is one of the classes.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 2 <= count <= 255:
            raise DataError(f"{count} classes; there must be 2 to 255")
        if len(self.palette) != count:
            raise DataError(f"the palette has {len(self.palette)} colours for {count} names")
        if not all(len(color) == 3 and min(color) >= 0 and max(color) <= 255 for color in self.palette):
            raise DataError("a colour of the palette is not three numbers from 0 to 255")
        if not count <= self.ignore_index <= 255:
            raise DataError(f"ignore_index {self.ignore_index} must be above the classes, 0 to {count - 1}, up to 255")
        for name, times in Counter(self.names).items():
            if times > 1:
                raise DataError(f"{times} classes have the same name, {shown(name)}")
            if not name.strip() or len(name) > MAX_CLASS_NAME or any(0xD800 <= ord(char) <= 0xDFFF for char in name):
                raise DataError(
                    f"{shown(name)} cannot be the name of a class: it is blank, has more than {MAX_CLASS_NAME} "
                    "characters or contains lone surrogates"
                )

    def __len__(self) -> int:
        return len(self.names)


def voc_palette(count: int) -> tuple[Color, ...]:
    """Returns the first `count` colours of PASCAL VOC's palette, which spreads the index's bits over the channels."""
    return tuple(_voc_color(index) for index in range(count))


def _voc_color(index: int) -> Color:
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def numbered_classes(count: int) -> Classes:
    """Returns classes for labels without names: "class_0" and so on, in VOC's colours."""
    return Classes(tuple(f"class_{index}" for index in range(count)), voc_palette(count))


def voc_classes() -> Classes:
    """Returns PASCAL VOC's 21 classes."""
    return Classes(VOC_NAMES, voc_palette(len(VOC_NAMES)))


# The 19 evaluated classes (Cordts et al., CVPR 2016), and their ids in Cityscapes' own masks.
CITYSCAPES = Classes(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
