"""One picture in every mode, depth and format: it is read right, or refused by name; never wrong."""

import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from exfuse.data.classes import numbered_classes
from exfuse.data.datasets import SegmentationDataset
from exfuse.data.doctor import validate
from exfuse.data.formats.base import Entry
from exfuse.data.pixels import STORED, UInt8Array
from exfuse.data.samples import image_size, read_image, read_mask
from exfuse.errors import DataError
from exfuse.inference.engines.base import Engine
from exfuse.models.options import options_of
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.predictor import Predictor
from support import image_variants
from support.image_variants import GREY, HEIGHT, LABELS, PICTURE, WIDTH, Variant

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {}),
    class_names=("a", "b"),
    palette=((0, 0, 0), (1, 1, 1)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


class NoEngine(Engine):
    """Calls every pixel the first class."""

    def labels(self, images: np.ndarray) -> np.ndarray:
        return np.zeros(images.shape[:3], np.uint8)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Without what OpenCV says of pictures that it cannot write."""
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    yield
    cv2.utils.logging.setLogLevel(before)


@pytest.fixture(scope="module")
def files(quiet: None, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Variant]]:
    """Every picture, as a file whose name says nothing of its format."""
    folder = tmp_path_factory.mktemp("pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, when it writes
        return written(folder, image_variants.pictures())


def written(folder: Path, variants: list[Variant]) -> list[tuple[Path, Variant]]:
    files = []
    for number, variant in enumerate(variants):
        path = folder / f"{number:04d}.png"
        path.write_bytes(variant.content)
        files.append((path, variant))
    return files


def outcome(path: Path, variant: Variant, read: Callable[[Path], UInt8Array]) -> str:
    try:
        pixels = read(path)
    except DataError as error:
        return "refused" if path.name in str(error) else "refused without its name"
    assert pixels.dtype == np.uint8
    if pixels.shape != variant.truth.shape:
        return "wrong"
    difference = np.abs(pixels.astype(int) - variant.truth).mean()
    return "right" if difference <= variant.tolerance else "wrong"


def predicted(path: Path) -> UInt8Array:
    """Returns what a network sees of an image that the caller opened."""
    try:
        image = Image.open(path)
    except OSError as error:
        raise DataError(f"{path}: {error}") from error  # it is not for us to say
    with image:
        return Predictor(NoEngine(), INFO)(image).image


@pytest.mark.parametrize("read", [read_image, predicted])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_picture_is_read_wrong(files: list[tuple[Path, Variant]], read: Callable[[Path], UInt8Array]) -> None:
    outcomes = {variant.name: outcome(path, variant, read) for path, variant in files}
    counts = Counter(outcomes.values())
    assert [name for name, what in outcomes.items() if what not in ("right", "refused")] == []
    assert counts["right"] > 300, counts
    assert counts["refused"] > 500, counts
    # What people have is read.
    for expected in (
        "Pillow, mode 1, PNG {}", "Pillow, mode L, PNG {}", "Pillow, mode LA, PNG {}", "Pillow, mode RGB, PNG {}",
        "Pillow, mode RGBA, PNG {}", "Pillow, mode RGB, JPEG {}", "Pillow, mode CMYK, JPEG {}",
        "Pillow, mode RGB, BMP {}", "PNG, kind=3, 4 bits, transparent=True", "TIFF, two strips",
        "OpenCV, 3 x uint8, tif [259, 5]", "OpenCV, 4 x uint8, webp [64, 101]",
    ):  # fmt: skip
        assert outcomes[expected] == "right", expected


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_the_doctor_names_the_files_that_are_refused_and_no_others(
    files: list[tuple[Path, Variant]], tmp_path: Path
) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(mask)
    refused = {str(path) for path, variant in files if outcome(path, variant, read_image) == "refused"}
    entries = tuple(Entry(path.stem, path, mask) for path, _ in files)
    result = validate(SegmentationDataset(tmp_path, "train", numbered_classes(2), entries))
    assert {finding.file for finding in result.issues if finding.severity == "error"} == refused


def masks() -> Iterator[Variant]:
    """Yields labels 0 to 3 in every mode of Pillow, in numbers of every type, and by hand."""
    palette = Image.fromarray(LABELS).convert("P")
    palette.putpalette([40, 30, 20] * 4)
    as_grey = Image.fromarray(LABELS)
    modes = {
        "P": palette,
        "L": as_grey,
        "1": Image.fromarray(LABELS > 0),
        "RGB": palette.convert("RGB"),
        "RGBA": as_grey.convert("RGBA"),
        "LA": as_grey.convert("LA"),
        "PA": palette.convert("PA"),
        "CMYK": palette.convert("CMYK"),
        "I": as_grey.convert("I"),
        "F": as_grey.convert("F"),
        "I;16": Image.fromarray(LABELS.astype(np.uint16)),
    }
    yield from image_variants.written_by_pillow({mode: (image, LABELS) for mode, image in modes.items()})
    for kind, suffix in itertools.product((np.uint8, np.uint16, np.int32, np.float32), image_variants.SUFFIXES):
        try:
            done, content = cv2.imencode(f".{suffix}", LABELS.astype(kind))
        except cv2.error:
            continue
        if done:
            yield Variant(f"OpenCV, {kind.__name__}, {suffix}", content.tobytes(), LABELS)
    for kind, bits in ((0, 2), (0, 4), (0, 8), (0, 16), (3, 2), (3, 4), (3, 8)):
        colors = [(b"PLTE", bytes(range(12)))] if kind == 3 else []
        content = image_variants.png((bits, kind, 0, 0, 0), [*colors, image_variants.png_pixels(LABELS, bits)])
        yield Variant(f"PNG, {kind=}, {bits} bits", content, LABELS)
    for bits, photometric, fill in itertools.product((2, 4, 8, 16, 32), (0, 1, 3), (1, 2)):
        tags = {258: (bits,), 262: (photometric,), 266: (fill,)}
        if photometric == 3:
            tags[320] = (0,) * 3 * 2 ** min(bits, 8)
        content = image_variants.tiff(tags, [image_variants.packed(LABELS, bits)])
        # Of one with white as zero nobody knows whether the label is what is stored or what is shown.
        truth = np.full_like(LABELS, 99) if photometric == 0 or fill == 2 else LABELS
        yield Variant(f"TIFF, {bits} bits, {photometric=}, {fill=}", content, truth)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_mask_is_read_wrong(tmp_path: Path) -> None:
    files = written(tmp_path, image_variants.without_copies(masks()))
    # A lossy file that happens to be right says nothing for the next one.
    outcomes = {variant.name: outcome(path, Variant("", b"", variant.truth), read_mask) for path, variant in files}
    counts = Counter(outcomes.values())
    assert [name for name, what in outcomes.items() if what not in ("right", "refused")] == []
    assert counts["right"] > 20, counts
    assert counts["refused"] > 100, counts
    assert not [name for name, what in outcomes.items() if what == "right" and "JPEG" in name]
    for expected in ("Pillow, mode L, PNG {}", "PNG, kind=3, 2 bits", "PNG, kind=3, 4 bits", "PNG, kind=3, 8 bits"):
        assert outcomes[expected] == "right", expected


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "LAB", "HSV", "RGBa", "La", "RGBX"])
def test_a_picture_in_memory_of_an_uncertain_mode_is_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode {re.escape(mode)} "):
        Predictor(NoEngine(), INFO)(Image.new(mode, (4, 4)))


def test_a_picture_in_memory_of_every_other_mode_is_read() -> None:
    images = image_variants.in_modes(GREY)
    read = 0
    for name, (image, truth) in images.items():
        if image.mode in STORED:
            tolerance = image_variants.ROUNDED if image.mode == "YCbCr" else 0
            assert np.abs(Predictor(NoEngine(), INFO)(image).image.astype(int) - truth).mean() <= tolerance, name
            read += 1
    assert read == len(STORED) + 1  # a palette is there twice


@pytest.mark.parametrize("other", [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)], ids=["pages", "pyramid"])
def test_a_tiff_of_several_images_is_refused_with_what_to_do(tmp_path: Path, other: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    image = Image.fromarray(PICTURE)
    image.save(path, save_all=True, append_images=[image.resize(other)])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}.*several images.*save .* as PNG"):
        read_image(path)


def test_a_cmyk_jpeg_that_does_not_say_which_way_its_inks_go_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert("CMYK").save(buffer, "JPEG")
    content = buffer.getvalue()
    marker = content.index(b"\xff\xeeAdobe".replace(b"Adobe", b"\x00\x0eAdobe"))
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:marker] + content[marker + 16 :])
    with pytest.raises(DataError, match=r"a\.jpg: .*CMYK"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp"])
def test_the_size_of_an_image_that_is_turned_is_that_of_what_is_read(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(PICTURE).save(path, exif=exif)
        assert (
            image_size(path) == read_image(path).shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
        )


def test_a_tag_behind_the_pixels_of_a_png_turns_it_also_in_its_header(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    content = path.read_bytes()
    end = image_variants.png_chunk(b"IEND", b"")
    path.write_bytes(content[: -len(end)] + image_variants.png_chunk(b"eXIf", exif.tobytes()[6:]) + end)
    assert image_size(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read_image(path), np.rot90(PICTURE, -1))
