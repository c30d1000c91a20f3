import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from exfuse.data import samples
from exfuse.data.image_files import MAX_PIXELS, MAX_SIDE
from exfuse.data.samples import Sample, check_sample, image_size, read_image, read_mask
from exfuse.errors import DataError

READERS = pytest.mark.parametrize("read", [read_image, read_mask])

# What a viewer does to show a stored array upright (EXIF 2.32, tag 0x0112).
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.fliplr(np.rot90(stored, -1)),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.fliplr(np.rot90(stored, 1)),
    8: lambda stored: np.rot90(stored, 1),
}


def random_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def write_png_header(path: Path, width: int, height: int) -> None:
    """Writes a greyscale PNG that says how large it is and holds not one pixel."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))


def test_read_image_returns_the_stored_rgb_values(tmp_path: Path):
    pixels = random_pixels(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


def test_read_image_repeats_grey_in_all_channels(tmp_path: Path):
    grey = random_pixels(5, 7)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=-1))


def test_read_image_drops_transparency(tmp_path: Path):
    pixels = random_pixels(5, 7, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels[..., :3])


def test_read_image_shows_the_colours_of_a_palette(tmp_path: Path):
    colors = random_pixels(256, 3)
    indices = random_pixels(5, 7)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(colors.ravel().tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colors[indices])


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_read_image_turns_the_image_upright(tmp_path: Path, orientation: int):
    stored = random_pixels(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_read_mask_turns_a_mask_upright_that_has_a_tag_of_its_own(tmp_path: Path, orientation: int):
    stored = random_pixels(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("values", [256, 16, 4, 2])
def test_read_mask_returns_stored_indices_and_not_colours(tmp_path: Path, values: int):
    indices = random_pixels(5, 7) % np.uint16(values)
    mask = Image.fromarray(indices.astype(np.uint8)).convert("P")
    mask.putpalette(random_pixels(values, 3).ravel().tolist())
    mask.save(tmp_path / "a.png")
    stored = read_mask(tmp_path / "a.png")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, indices)


def test_read_mask_returns_grey_values(tmp_path: Path):
    labels = random_pixels(5, 7)
    Image.fromarray(labels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


@pytest.mark.parametrize("bits", [2, 4])
def test_read_mask_refuses_grey_values_of_fewer_bits_that_readers_would_stretch(tmp_path: Path, bits: int):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 3, bits, 0, 0, 0, 0))
    rows = 3 * (b"\0" + b"\x1b" * bits)  # no filter, eight pixels
    content = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.mode, image.size) == ("L", (8, 3))
    with pytest.raises(DataError, match=rf"a\.png: .*mode L, stored as L;{bits}"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "LA", "RGB", "RGBA", "I;16"])
def test_read_mask_refuses_what_is_not_one_byte_a_pixel(tmp_path: Path, mode: str):
    path = tmp_path / "a.png"
    picture = Image.fromarray(random_pixels(5, 7).astype(np.uint16)) if mode == "I;16" else Image.new(mode, (7, 5))
    picture.save(path)
    with pytest.raises(DataError, match=f"mode {mode}") as raised:
        read_mask(path)
    assert str(path) in str(raised.value)


@READERS
def test_a_missing_file_is_named(tmp_path: Path, read):
    path = tmp_path / "gone.png"
    with pytest.raises(DataError, match="no such") as raised:
        read(path)
    assert str(path) in str(raised.value)


@READERS
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_a_truncated_file_is_named(tmp_path: Path, read, suffix: str):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(random_pixels(32, 40)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(path) in str(raised.value)


@READERS
@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, read, content: bytes):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match="readable") as raised:
        read(path)
    assert str(path) in str(raised.value)


@READERS
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, read):
    with pytest.raises(DataError, match="readable") as raised:
        read(tmp_path)
    assert str(tmp_path) in str(raised.value)


@READERS
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_no_program_is_started_for_a_file_that_says_it_is_postscript(
    tmp_path: Path, read, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match="readable"):
        read(path)
    with pytest.raises(DataError, match="readable"):
        image_size(path)
    assert started == []


def test_exif_numbers_that_do_not_fit_their_type_do_not_matter(tmp_path: Path):
    def entry(tag: int, kind: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, 1, value)

    rich = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entry(0x0112, 3, 6) + entry(0x0128, 4, 70_000) + b"\0\0\0\0"
    path = tmp_path / "a.jpg"
    Image.fromarray(random_pixels(12, 16, 3)).save(path, exif=rich)
    assert read_image(path).shape == (16, 12, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of the damage
@READERS
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_damaged_bytes_give_pixels_or_a_data_error_and_nothing_else(tmp_path: Path, read, suffix: str):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_pixels(12, 16)).save(path, **({} if suffix == "bmp" else {"exif": exif}))
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(intact)
        for place in rng.integers(0, min(len(intact), 200), rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            pixels = read(path)
        except DataError as error:
            messages.append(str(error))
        else:
            assert pixels.dtype == np.uint8
    assert messages
    assert all(str(path) in message for message in messages)


@READERS
@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (7072, 7072)])
def test_an_oversize_image_is_refused_from_its_header(tmp_path: Path, read, width: int, height: int):
    path = tmp_path / "a.png"
    write_png_header(path, width, height)
    with pytest.raises(DataError, match=f"{width} x {height} ") as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert f"{MAX_PIXELS:,}" in str(raised.value)


@READERS
@pytest.mark.parametrize("side", [10_000, 100_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, read, side: int):
    path = tmp_path / "a.png"
    write_png_header(path, side, side)
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(path) in str(raised.value)


@READERS
def test_the_longest_side_allowed_is_read(tmp_path: Path, read):
    path = tmp_path / "a.png"
    Image.new("L", (MAX_SIDE, 2)).save(path)
    assert read(path).shape[:2] == (2, MAX_SIDE)


def test_labels_are_counted_as_numpy_counts_them_in_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "AT_ONCE", 7)
    mask = random_pixels(5, 9)
    np.testing.assert_array_equal(samples.count_labels(mask), np.bincount(mask.ravel(), minlength=256))
    for label in np.unique(mask).tolist():
        assert samples.first_place(mask, label) == tuple(int(place[0]) for place in np.nonzero(mask == label))


def test_check_sample_accepts_every_class_and_the_ignored_label():
    mask = np.array([[0, 1, 2], [255, 1, 0]], dtype=np.uint8)
    check_sample(Sample(random_pixels(2, 3, 3), mask), 3, 255, Path("image"), Path("mask"))
    with pytest.raises(DataError, match=r"\bmask: .*label 2\b"):
        check_sample(Sample(random_pixels(2, 3, 3), mask), 2, 255, Path("image"), Path("mask"))


@pytest.mark.parametrize("ignore_index", [255, 7])
def test_check_sample_names_file_value_count_and_first_place_of_an_unknown_label(ignore_index: int):
    mask = np.full((4, 6), ignore_index, dtype=np.uint8)
    mask[1, 4] = mask[2, 0] = mask[3, 5] = 9
    mask[0, 0] = 11
    with pytest.raises(DataError) as raised:
        check_sample(Sample(random_pixels(4, 6, 3), mask), 3, ignore_index, Path("image.jpg"), Path("masks/m.png"))
    message = str(raised.value)
    assert re.search(r"^masks/m\.png: 3 .*label 9\b.*row 1, column 4\b", message)
    assert message.endswith(f"classes are 0 to 2, {ignore_index} is ignored")


def test_check_sample_names_both_sizes_that_differ():
    sample = Sample(random_pixels(4, 6, 3), np.zeros((4, 5), dtype=np.uint8))
    with pytest.raises(DataError) as raised:
        check_sample(sample, 3, 255, Path("image.jpg"), Path("mask.png"))
    assert re.search(r"^mask\.png: .*5 x 4\b.*image\.jpg .*6 x 4\b", str(raised.value))


def test_check_sample_hints_at_a_missing_rotation():
    sample = Sample(random_pixels(4, 6, 3), np.zeros((6, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"mask\.png: .*4 x 6\b.*EXIF"):
        check_sample(sample, 3, 255, Path("image.jpg"), Path("mask.png"))
