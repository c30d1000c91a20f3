"""Boundaries, bands, calibration and object size against slow counts written from their definitions."""

import itertools

import numpy as np
import pytest

from exfuse.evaluation.metrics import (
    CALIBRATION_BINS,
    METRICS,
    TRIMAP_WIDTHS,
    BoundaryIoU,
    Calibration,
    ObjectSizeIoU,
    ScoredImage,
    TrimapIoU,
    boundary_region,
    make_metrics,
    size_classes,
)

IGNORE = 255


def scored(labels: np.ndarray, target: np.ndarray, confidence: np.ndarray | None = None) -> ScoredImage:
    if confidence is None:
        confidence = np.ones(labels.shape)
    return ScoredImage(confidence.astype(np.float32), labels.astype(np.uint8), target.astype(np.uint8))


def random_image(seed: int, height: int = 23, width: int = 31, classes: int = 4) -> ScoredImage:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (2, height // 5 + 1, width // 5 + 1))
    labels, target = np.kron(coarse, np.ones((1, 5, 5), dtype=np.int64))[:, :height, :width]
    target = np.where(rng.random(target.shape) < 0.03, IGNORE, target)
    return scored(labels, target, rng.random(labels.shape))


def slow_region(region: np.ndarray, distance: int) -> np.ndarray:
    height, width = region.shape
    result = np.zeros_like(region)
    for row, column in itertools.product(range(height), range(width)):
        around = ((row + a, column + b) for a in range(-distance, distance + 1) for b in range(-distance, distance + 1))
        inside = all(0 <= r < height and 0 <= c < width and region[r, c] for r, c in around)
        result[row, column] = region[row, column] and not inside
    return result


@pytest.mark.parametrize("distance", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_boundary_region_is_what_lies_near_the_outside(distance: int, seed: int) -> None:
    region = random_image(seed).labels == 1
    np.testing.assert_array_equal(boundary_region(region, distance), slow_region(region, distance))


def test_boundary_iou_counts_regions_of_all_images_where_the_target_is_known() -> None:
    measure = BoundaryIoU(4, IGNORE)
    both, true, predicted = (np.zeros(4) for _ in range(3))
    for seed in range(3):
        image = random_image(seed)
        measure.update(image)
        distance = max(1, round(0.02 * (23**2 + 31**2) ** 0.5))
        labels = np.where(image.target == IGNORE, IGNORE, image.labels)
        for label in range(4):
            of_true = slow_region(image.target == label, distance)
            of_predicted = slow_region(labels == label, distance)
            both[label] += (of_true & of_predicted).sum()
            true[label] += of_true.sum()
            predicted[label] += of_predicted.sum()
    result = measure.result()
    assert result["classes"] == pytest.approx((both / (true + predicted - both)).tolist())
    assert result["mean"] == pytest.approx(np.mean(both / (true + predicted - both)))


def test_boundary_iou_is_one_for_the_truth_and_leaves_absent_classes_out() -> None:
    measure = BoundaryIoU(5, IGNORE)
    image = random_image(0)
    truth = np.where(image.target == IGNORE, 3, image.target)  # whatever is said where nothing is known
    measure.update(scored(truth, image.target))
    assert measure.result() == {"mean": 1.0, "classes": [1.0, 1.0, 1.0, 1.0, None]}


def test_trimap_bands_hold_the_pixels_near_another_label() -> None:
    measure = TrimapIoU(4, IGNORE)
    images = [random_image(seed) for seed in range(3)]
    for image in images:
        measure.update(image)
    for place, width in enumerate(TRIMAP_WIDTHS):
        expected = np.zeros((4, 4), dtype=np.int64)
        for image in images:
            height, columns = image.target.shape
            for row, column in itertools.product(range(height), range(columns)):
                label = image.target[row, column]
                near = image.target[max(0, row - width) : row + width + 1, max(0, column - width) : column + width + 1]
                if label != IGNORE and (near != label).any():
                    expected[label, image.labels[row, column]] += 1
        np.testing.assert_array_equal(measure.counts[place].numpy(), expected)
    scores = measure.result()["mean_iou_by_width"]
    assert list(scores) == [str(width) for width in TRIMAP_WIDTHS]
    assert all(0 < score < 1 for score in scores.values())


def test_an_image_of_one_class_has_no_band() -> None:
    measure = TrimapIoU(2, IGNORE)
    measure.update(scored(np.zeros((8, 8)), np.zeros((8, 8))))
    assert set(measure.result()["mean_iou_by_width"].values()) == {None}


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    measure = Calibration(4, IGNORE)
    pixels = []
    for seed in range(3):
        image = random_image(seed)
        measure.update(image)
        pixels += [
            (float(confidence), label == target)
            for confidence, label, target in zip(
                image.confidence.ravel(), image.labels.ravel(), image.target.ravel(), strict=True
            )
            if target != IGNORE
        ]
    gap = 0.0
    for place in range(CALIBRATION_BINS):
        inside = [pair for pair in pixels if place / CALIBRATION_BINS <= pair[0] < (place + 1) / CALIBRATION_BINS]
        if inside:
            confidence, accuracy = np.mean([c for c, _ in inside]), np.mean([right for _, right in inside])
            gap += len(inside) / len(pixels) * abs(confidence - accuracy)
    result = measure.result()
    assert result["expected_calibration_error"] == pytest.approx(gap)
    assert sum(row["fraction"] for row in result["bins"]) == pytest.approx(1)


def test_certain_pixels_are_in_the_last_bin_and_perfect_when_right() -> None:
    measure = Calibration(2, IGNORE)
    assert measure.result()["expected_calibration_error"] is None
    measure.update(scored(np.ones((4, 4)), np.ones((4, 4))))
    assert measure.result() == {
        "expected_calibration_error": 0.0,
        "bins": [{"fraction": 1.0, "accuracy": 1.0, "confidence": 1.0}],
    }


def test_sizes_are_those_of_connected_parts() -> None:
    region = np.zeros((300, 300), dtype=bool)
    region[0:31, 0:33] = True  # 1,023 pixels
    region[40:72, 0:32] = True  # 1,024
    region[100:196, 100:196] = True  # 9,216
    region[196, 196] = True  # touches the last at its corner
    sizes = size_classes(region)
    assert sizes[0, 0] == 0
    assert sizes[50, 10] == 1
    assert sizes[150, 150] == sizes[196, 196] == 2


def test_object_sizes_count_misses_to_the_object_and_claims_to_the_prediction() -> None:
    target, labels = np.zeros((200, 200)), np.zeros((200, 200))
    target[10:20, 10:20] = 1  # small, half of it found
    labels[10:20, 10:15] = 1
    labels[50:150, 50:150] = 1  # a large claim, of which what is not ignored is medium
    target[50:60, 50:150] = IGNORE
    measure = ObjectSizeIoU(2, IGNORE)
    measure.update(scored(labels, target))
    assert measure.counts[:, 1].tolist() == [[50, 50, 0], [0, 0, 9000], [0, 0, 0]]
    background = 200 * 200 - 100 - 1000
    assert measure.counts[2, 0].tolist() == [background - 9000, 9000, 50]
    scores = measure.result()["mean_iou_by_size"]
    assert scores["small"] == pytest.approx(0.5)
    assert scores["medium"] is None
    assert scores["large"] == pytest.approx((background - 9000) / (background + 50))


def test_counts_of_two_shares_add_up_to_those_of_the_whole() -> None:
    images = [random_image(seed) for seed in range(4)]
    whole, first, second = (make_metrics(tuple(METRICS), 4, IGNORE) for _ in range(3))
    for index, image in enumerate(images):
        for metrics in (whole, (first, second)[index % 2]):
            for measure in metrics.values():
                measure.update(image)
    for name, measure in whole.items():
        assert first[name].counts.any()
        assert second[name].counts.any()
        first[name].counts += second[name].counts
        np.testing.assert_allclose(first[name].counts.numpy(), measure.counts.numpy())
