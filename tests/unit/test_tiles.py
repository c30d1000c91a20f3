"""Large images: cutting, blending, and writing strip by strip."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from exfuse.data.png_stream import PngStreamWriter
from exfuse.data.samples import read_image
from exfuse.errors import ConfigError, DataError
from exfuse.inference.tiling import Tiling, label_strips, tile_spans
from exfuse.inference.tta import NO_TTA
from exfuse.models.options import options_of
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.predictor import Predictor, predict_large

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {}),
    class_names=("dark", "red", "green", "blue"),
    palette=((0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


class PixelEngine:
    """Sees each pixel alone, or with a reach: the mean of the pixels up to so far away."""

    name, precision, device, augmentation = "pixels", "fp32", "cpu", NO_TTA

    def __init__(self, reach: int = 0) -> None:
        self.reach = reach
        self.largest = 0

    def scores(self, images: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, *images.shape[1:3])
        colors = images.astype(np.float64)
        if self.reach:
            padded = np.pad(colors, ((0, 0), (self.reach, self.reach), (self.reach, self.reach), (0, 0)))
            size = 2 * self.reach + 1
            colors = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2)).mean(axis=(-1, -2))
        dark = np.full(colors.shape[:3], 90.0)
        return np.stack([dark, *np.moveaxis(colors, -1, 0)], axis=1).astype(np.float32)

    def labels(self, images: np.ndarray) -> np.ndarray:
        return self.scores(images).argmax(axis=1).astype(np.uint8)


class BlockEngine(PixelEngine):
    """Sees the blocks of 32 x 32 pixels that a network of that stride sees, from the corner of what it is given."""

    def scores(self, images: np.ndarray) -> np.ndarray:
        scores = super().scores(images)
        height, width = scores.shape[2:]
        padded = np.pad(scores, ((0, 0), (0, 0), (0, -height % 32), (0, -width % 32)))
        blocks = padded.reshape(*scores.shape[:2], padded.shape[2] // 32, 32, padded.shape[3] // 32, 32)
        means = blocks.mean(axis=(3, 5), keepdims=True)
        return np.broadcast_to(means, blocks.shape).reshape(padded.shape)[..., :height, :width]


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (211, 340, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [1, 63, 64, 65, 100, 127, 128, 129, 1000, 1023])
@pytest.mark.parametrize("tiling", [Tiling(64, 0), Tiling(64, 16), Tiling(64, 31), Tiling(100, 7)])
def test_tiles_cover_a_side_and_share_just_the_overlap(side: int, tiling: Tiling):
    tiles = tile_spans(side, tiling)
    assert tiles[0][0] == 0
    assert tiles[-1][1] == side
    assert all(0 < end - start <= tiling.tile_size for start, end in tiles)
    for (_, end), (start, _) in itertools.pairwise(tiles):
        assert end - start == tiling.overlap
    assert all(end <= start for (_, end), (start, _) in zip(tiles, tiles[2:], strict=False)), "three share a pixel"
    assert len({end - start for start, end in tiles[:-1]}) <= 1
    assert all(start % 32 == 0 for start, _ in tiles)


@pytest.mark.parametrize("tiling", [Tiling(64, 16), Tiling(64, 0), Tiling(100, 32), Tiling(64, 32), Tiling(1000, 100)])
def test_a_network_that_sees_single_pixels_labels_tiles_as_the_whole(picture: np.ndarray, tiling: Tiling):
    engine = PixelEngine()
    strips = list(label_strips(engine, picture, tiling))
    np.testing.assert_array_equal(np.concatenate(strips), engine.labels(picture[None])[0])
    assert all(strip.dtype == np.uint8 for strip in strips)


def test_labels_are_those_of_the_whole_where_a_tile_sees_all_they_depend_on(picture: np.ndarray):
    reach, tiling = 3, Tiling(64, 16)
    engine = PixelEngine(reach)
    engine.scores(picture[None])
    whole, tiled = engine.labels(picture[None])[0], np.concatenate(list(label_strips(engine, picture, tiling)))
    seen = np.ones(whole.shape, dtype=bool)
    for axis, side in enumerate(whole.shape):
        for start, end in tile_spans(side, tiling):
            for border in [start] * (start > 0) + [end] * (end < side):
                near = np.arange(max(0, border - reach), min(side, border + reach))
                seen[near if axis == 0 else slice(None), near if axis == 1 else slice(None)] = False
    assert seen.mean() > 0.3
    np.testing.assert_array_equal(tiled[seen], whole[seen])
    assert (tiled != whole).any(), "so the rule is not empty"


@pytest.mark.parametrize("tiling", [Tiling(96, 32), Tiling(100, 32), Tiling(64, 0)])
def test_a_network_of_stride_32_sees_the_same_blocks_in_tiles(tiling: Tiling):
    picture = np.random.default_rng(1).integers(60, 120, (300, 417, 3), dtype=np.uint8)
    engine = BlockEngine()
    whole = engine.labels(picture[None])[0]
    assert len(np.unique(whole)) > 1
    np.testing.assert_array_equal(np.concatenate(list(label_strips(engine, picture, tiling))), whole)


def test_no_tile_is_larger_than_asked(picture: np.ndarray):
    engine = PixelEngine()
    list(label_strips(engine, picture, Tiling(96, 20)))
    assert engine.largest <= 96


@pytest.mark.parametrize("tiling", [Tiling(64, 33), Tiling(100, 49), Tiling(64, -1), Tiling(31, 0), Tiling(64, 100)])
def test_a_tiling_that_makes_no_sense_is_refused(picture: np.ndarray, tiling: Tiling):
    with pytest.raises(ConfigError, match=rf"\b{tiling.tile_size} .* {tiling.overlap}\b"):
        next(label_strips(PixelEngine(), picture, tiling))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_large_prediction_leaves_the_mask_a_preview_and_the_shares(
    picture: np.ndarray, stride: int, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("exfuse.predictor.PREVIEW_SIDE", -(-340 // stride))
    engine = PixelEngine()
    with (tmp_path / "mask.png").open("wb") as file:
        result = predict_large(Predictor(engine, INFO), picture, Tiling(64, 16), file)
    expected = engine.labels(picture[None])[0]
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), expected)
        np.testing.assert_array_equal(np.array(mask.convert("RGB")), np.array(INFO.palette)[expected])
    np.testing.assert_array_equal(result.preview.labels, expected[::stride, ::stride])
    np.testing.assert_array_equal(result.preview.image, picture[::stride, ::stride])
    for label, share in enumerate(result.fractions.values()):
        assert share == pytest.approx((expected == label).mean())


def test_a_mask_that_lacks_rows_is_not_finished():
    writer = PngStreamWriter(io.BytesIO(), (4, 4), INFO.palette)
    writer.write(np.zeros((2, 4), np.uint8))
    with pytest.raises(ValueError, match="2 of 4 rows"):
        writer.finish()


@pytest.mark.parametrize("shape", [(1, 3), (1, 5), (3, 4)])
def test_rows_that_do_not_fit_are_refused(shape: tuple[int, int]):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        PngStreamWriter(io.BytesIO(), (4, 2), INFO.palette).write(np.zeros(shape, np.uint8))


def test_the_limit_of_an_image_can_be_lifted_and_lowered(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 60_000_000).shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"40 x 30 .*1,199"):
        read_image(tmp_path / "a.png", 1199)
