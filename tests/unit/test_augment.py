from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exfuse.data.augment import Augmentation
from exfuse.data.datasets import open_dataset
from exfuse.data.loader import AugmentedDataset, SampleKey
from exfuse.data.samples import Sample

FILL = (10, 120, 230)
IGNORE = 250
NO_TTA = Augmentation(
    crop_size=(32, 32),
    scale=(1.0, 1.0),
    flip=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    fill=FILL,
    ignore_index=IGNORE,
)
# Where the resampling may round a coordinate either way: twice the resolution of OpenCV's fixed-point coordinates.
NEAR_TIE = 2 / 1024


class Scripted:
    """Stands in for a random generator: every range is drawn at the same share of its length."""

    def __init__(self, share: float, chance: float = 0.5) -> None:
        self.share = share
        self.chance = chance

    def uniform(self, low: float, high: float) -> float:
        return low + self.share * (high - low)

    def random(self) -> float:
        return self.chance


def random_sample(height: int, width: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 200, (height, width), dtype=np.uint8))


def source_places(size: int, crop: int, scale: float, share: float, mirrored: bool) -> list[float]:
    """Returns where each pixel of a crop lies in the source, along one side; pixel i covers i - 0.5 to i + 0.5."""
    slack = size * scale - crop
    offset = share * slack if slack > 0 else (1 - share) * slack
    places = [(pixel + offset + 0.5) / scale - 0.5 for pixel in range(crop)]
    return places[::-1] if mirrored else places


@pytest.mark.parametrize("mirrored", [False, True], ids=["straight", "mirrored"])
@pytest.mark.parametrize("share", [0.0, 0.31, 1.0])
@pytest.mark.parametrize("scale", [0.53, 1.0, 1.37, 2.09])
@pytest.mark.parametrize("size", [(23, 31), (57, 71), (24, 90)])
def test_a_mask_is_sampled_as_by_a_loop_over_its_pixels(
    size: tuple[int, int], scale: float, share: float, mirrored: bool
):
    sample = random_sample(*size)
    crop = (37, 43)
    augmentation = replace(NO_TTA, crop_size=crop, scale=(scale, scale), flip=0.5)
    result = augmentation(sample, Scripted(share, chance=0.4 if mirrored else 0.6))
    assert result.image.shape == (*crop, 3)
    assert result.mask.shape == crop
    assert result.image.dtype == result.mask.dtype == np.uint8

    rows = source_places(size[0], crop[0], scale, share, mirrored=False)
    columns = source_places(size[1], crop[1], scale, share, mirrored)
    compared = 0
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
            if any(abs(place + 0.5 - round(place + 0.5)) < NEAR_TIE for place in (x, y)):
                continue
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            assert result.mask[i, j] == (sample.mask[row, column] if inside else IGNORE), (i, j)
            compared += 1
    assert compared > 0.85 * crop[0] * crop[1]


@pytest.mark.parametrize("mirrored", [False, True], ids=["straight", "mirrored"])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.9])
def test_an_image_is_interpolated_at_the_places_of_the_mask(scale: float, mirrored: bool):
    height, width, crop, share = 60, 80, (40, 50), 0.43
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([3 * x, 4 * y, 255 - 3 * x], axis=-1).astype(np.uint8)
    augmentation = replace(NO_TTA, crop_size=crop, scale=(scale, scale), flip=0.5)
    result = augmentation(Sample(ramps, np.zeros((height, width), np.uint8)), Scripted(share, 0.0 if mirrored else 0.9))
    rows = np.array(source_places(height, crop[0], scale, share, mirrored=False))
    columns = np.array(source_places(width, crop[1], scale, share, mirrored))
    inside = np.ix_((rows >= 0) & (rows <= height - 1), (columns >= 0) & (columns <= width - 1))
    row_places, column_places = np.broadcast_arrays(rows[:, None], columns[None])
    # Ramps are straight lines, so interpolation gives the ramp at the place itself.
    expected = np.stack([3 * column_places, 4 * row_places, 255 - 3 * column_places], axis=-1)
    assert np.abs(result.image[inside] - expected[inside]).max() < 0.8


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_aligned(seed: int):
    # A picture of the labels: away from their borders each pixel must still have its label's colour.
    colors = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    colors[IGNORE] = FILL
    mask = np.kron(np.arange(48).reshape(6, 8), np.ones((16, 16))).astype(np.uint8)
    augmentation = replace(NO_TTA, crop_size=(90, 120), scale=(0.5, 2.0), flip=0.5)
    result = augmentation(Sample(colors[mask], mask), np.random.default_rng(seed))
    windows = np.lib.stride_tricks.sliding_window_view(result.mask, (5, 5))
    away = (windows == windows[..., 2:3, 2:3]).all(axis=(-1, -2))
    assert away.mean() > 0.2
    np.testing.assert_array_equal(result.image[2:-2, 2:-2][away], colors[result.mask[2:-2, 2:-2][away]])


def test_nothing_is_changed_where_nothing_is_asked_for():
    sample = random_sample(33, 47)
    result = replace(NO_TTA, crop_size=(33, 47))(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, sample.image)
    np.testing.assert_array_equal(result.mask, sample.mask)


def test_a_sure_flip_mirrors_left_and_right_exactly():
    sample = random_sample(33, 47)
    result = replace(NO_TTA, crop_size=(33, 47), flip=1.0)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(result.mask, sample.mask[:, ::-1])


def test_about_as_many_samples_are_flipped_as_asked_for():
    sample = random_sample(4, 5)
    augmentation = replace(NO_TTA, crop_size=(4, 5), flip=0.3)
    rng = np.random.default_rng(0)
    flipped = sum(not np.array_equal(augmentation(sample, rng).mask, sample.mask) for _ in range(1000))
    assert 250 < flipped < 350


def test_a_crop_of_a_larger_image_has_no_border():
    sample = random_sample(50, 60)
    augmentation = replace(NO_TTA, scale=(0.7, 2.0))
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert (augmentation(sample, rng).mask != IGNORE).all()


def test_a_smaller_image_lies_whole_and_anywhere_within_the_crop():
    sample = random_sample(20, 25)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(200):
        result = NO_TTA(sample, rng)
        rows, columns = np.nonzero(result.mask != IGNORE)
        corners.add((rows.min(), columns.min()))
        np.testing.assert_array_equal(result.mask[rows, columns].reshape(20, 25), sample.mask)
        outside = result.mask == IGNORE
        outside[max(rows.min() - 1, 0) : rows.max() + 2, max(columns.min() - 1, 0) : columns.max() + 2] = False
        assert (result.image[outside] == FILL).all()
    assert {row for row, _ in corners} == set(range(13))
    assert {column for _, column in corners} == set(range(8))


def test_crops_of_a_larger_image_start_anywhere_within_it():
    y, x = np.mgrid[:40, :44].astype(np.uint8)
    sample = Sample(np.zeros((40, 44, 3), np.uint8), y)
    across = Sample(sample.image, x)
    rows = {int(NO_TTA(sample, np.random.default_rng(seed)).mask[0, 0]) for seed in range(300)}
    columns = {int(NO_TTA(across, np.random.default_rng(seed)).mask[0, 0]) for seed in range(300)}
    assert rows == set(range(9))
    assert columns == set(range(13))


@pytest.mark.parametrize(("share", "factor"), [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
def test_brightness_multiplies(share: float, factor: float):
    sample = random_sample(32, 32)
    result = replace(NO_TTA, brightness=0.5)(sample, Scripted(share))
    expected = np.minimum(np.rint(sample.image * factor), 255)
    np.testing.assert_array_equal(result.image, expected)
    np.testing.assert_array_equal(result.mask, sample.mask)


@pytest.mark.parametrize(("share", "factor"), [(0.0, 0.0), (0.25, 0.5), (1.0, 2.0)])
def test_saturation_moves_each_pixel_away_from_its_own_grey(share: float, factor: float):
    sample = random_sample(32, 32)
    result = replace(NO_TTA, saturation=1.0)(sample, Scripted(share))
    pixels = sample.image.astype(np.float64)
    grey = (0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2])[..., None]
    expected = np.clip(grey + factor * (pixels - grey), 0, 255)
    assert np.abs(result.image - expected).max() < 1
    np.testing.assert_array_equal(result.mask, sample.mask)


@pytest.mark.parametrize(("share", "factor"), [(0.0, 0.0), (0.25, 0.5), (1.0, 2.0)])
def test_contrast_moves_each_pixel_away_from_the_mean_grey(share: float, factor: float):
    sample = random_sample(32, 32)
    result = replace(NO_TTA, contrast=1.0)(sample, Scripted(share))
    pixels = sample.image.astype(np.float64)
    mean_grey = (pixels * [0.299, 0.587, 0.114]).sum(axis=-1).mean()
    expected = np.clip(mean_grey + factor * (pixels - mean_grey), 0, 255)
    assert np.abs(result.image - expected).max() < 0.501
    np.testing.assert_array_equal(result.mask, sample.mask)


def test_the_sample_that_is_augmented_is_left_as_it_was():
    sample = random_sample(32, 32)
    before = Sample(sample.image.copy(), sample.mask.copy())
    replace(NO_TTA, flip=1.0, brightness=0.5, contrast=0.5, saturation=0.5)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(sample.image, before.image)
    np.testing.assert_array_equal(sample.mask, before.mask)


def test_a_sample_is_a_function_of_seed_epoch_and_index_alone(pack: Path):
    dataset = open_dataset(pack, "train")
    # The same files under two numbers: only the number itself can make a difference.
    twice = replace(dataset, entries=(dataset.entries[0], dataset.entries[0]))
    augmentation = replace(NO_TTA, scale=(0.5, 2.0), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3)
    samples = AugmentedDataset(twice, augmentation, seed=5)
    first = samples[SampleKey(3, 1)]

    np.random.seed(99)  # the state that must not matter
    for epoch in range(3):
        samples[SampleKey(epoch, 0)]
    again = samples[SampleKey(3, 1)]
    fresh = AugmentedDataset(twice, augmentation, seed=5)[SampleKey(3, 1)]
    for other in (again, fresh):
        np.testing.assert_array_equal(other.images, first.images)
        np.testing.assert_array_equal(other.targets, first.targets)

    changed = [
        samples[SampleKey(4, 1)],
        samples[SampleKey(3, 0)],
        AugmentedDataset(twice, augmentation, seed=6)[SampleKey(3, 1)],
    ]
    for other in changed:
        assert not np.array_equal(other.images, first.images)
        assert not np.array_equal(other.targets, first.targets)
