"""Images for classification, in one folder per class, and the crops of them that a network is given."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from exfuse.data.augment import jitter_colors
from exfuse.data.files import image_files, inside
from exfuse.data.samples import UInt8Array, image_size, read_image
from exfuse.errors import DataError

# Range of a training crop's width / height (Szegedy et al., "Going deeper with convolutions", 2015, section 6).
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ClassifiedImage:
    """An image and its class.

    Attributes:
        image: RGB, uint8, `(H, W, 3)`.
        label: Index of the class.
    """

    image: UInt8Array
    label: int

    @property
    def target(self) -> npt.NDArray[np.int64]:
        """The class, as the training target."""
        return np.array(self.label)


@dataclass(frozen=True)
class ImageFolder:
    """One split of a classification data set: `len()`, and images by index.

    Attributes:
        root: Folder of the data set.
        split: Name of the split.
        class_names: The folders' names in alphabetical order.
        entries: Path and class of each image, class by class.
    """

    root: Path
    split: str
    class_names: tuple[str, ...]
    entries: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> ClassifiedImage:
        """Reads an image.

        Raises:
            DataError: If the file is missing or broken.
        """
        path, label = self.entries[index]
        return ClassifiedImage(read_image(path), label)

    def image_path(self, index: int) -> Path:
        """Returns the path of an image."""
        return self.entries[index][0]


def open_image_folder(root: Path, split: str) -> ImageFolder:
    """Opens `root/split/CLASS/*`.

    Args:
        root: Folder of the data set.
        split: For example "train" or "val".

    Raises:
        DataError: If the folder does not exist, there are fewer than two classes, or a class has no images.
    """
    folder = inside(root, split)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected {split}/CLASS/IMAGE below {root}")
    if broken := next((path for path in folder.iterdir() if not path.exists()), None):
        raise DataError(f"{broken}: broken link")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    if len(names) < 2:
        raise DataError(f"{folder}: expected a folder for each of at least two classes, found {len(names)}")
    entries: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        images = image_files(folder / name)
        if not images:
            raise DataError(f"{folder / name}: the class has no images")
        entries.extend((path, label) for path in images)
    return ImageFolder(root, split, names, tuple(entries))


def check_image_folder(dataset: ImageFolder, progress: Callable[[], None] = lambda: None) -> None:
    """Checks the header of every image of a split; pixels are read later, when they are needed.

    Args:
        dataset: The split.
        progress: Called after each image.

    Raises:
        DataError: For the first file that is not an image or is too large.
    """
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(image_size, [path for path, _ in dataset.entries]):
            progress()


@dataclass(frozen=True)
class ClassificationAugmentation:
    """The random augmentation of training images: a crop of random size and shape, a flip, colour changes.

    Attributes:
        crop_size: Height and width of the result, in pixels.
        area: Range of the crop's fraction of the image's area, drawn uniformly.
        flip: Probability of a horizontal flip.
        brightness: Largest relative change of the brightness, 0 to 1; likewise `contrast` and `saturation`.
        contrast: See `brightness`.
        saturation: See `brightness`.
    """

    crop_size: tuple[int, int]
    area: tuple[float, float]
    flip: float
    brightness: float
    contrast: float
    saturation: float

    def __call__(self, sample: ClassifiedImage, rng: np.random.Generator) -> ClassifiedImage:
        """Returns the augmented image, of size `crop_size`."""
        top, left, height, width = self._draw_crop(sample.image.shape[0], sample.image.shape[1], rng)
        image = resize(sample.image[top : top + height, left : left + width], self.crop_size)
        if rng.random() < self.flip:
            image = image[:, ::-1]
        limits = (self.brightness, self.contrast, self.saturation)
        return ClassifiedImage(jitter_colors(image, *limits, rng), sample.label)

    def _draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        for _ in range(CROP_ATTEMPTS):
            area = height * width * rng.uniform(*self.area)
            ratio = float(np.exp(rng.uniform(*np.log(ASPECT_RATIOS))))
            crop_height, crop_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return top, left, crop_height, crop_width
        # Usually a very long image: its centre is used, with the most extreme shape that is allowed.
        crop_height = min(height, round(width / ASPECT_RATIOS[0]))
        crop_width = min(width, round(height * ASPECT_RATIOS[1]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def central_view(image: UInt8Array, shorter_side: int, crop_size: tuple[int, int]) -> UInt8Array:
    """Resizes an image's shorter side to `shorter_side`, and returns the central crop, uint8 `(*crop_size, 3)`."""
    height, width = image.shape[:2]
    scale = shorter_side / min(height, width)
    # The crop always fits, because its sides are at most `shorter_side`.
    resized = resize(image, (max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale))))
    top, left = (resized.shape[0] - crop_size[0]) // 2, (resized.shape[1] - crop_size[1]) // 2
    return resized[top : top + crop_size[0], left : left + crop_size[1]]


def resize(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resizes to `(height, width)`: by averaging areas if the image shrinks, else bilinearly."""
    shrinks = image.shape[0] * image.shape[1] > size[0] * size[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size[::-1], interpolation=interpolation), dtype=np.uint8)
