"""Images and masks that are mutated, claim much or hold much (S3, S4)."""

import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.samples import image_size, read_image, read_mask
from exfuse.errors import DataError
from support import image_variants
from support.faults import mutate
from support.limits import at_most

FORMATS = {
    "jpg": {"format": "JPEG", "quality": 80},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "palette.png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "deflate.tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
    "bmp": {"format": "BMP"},
    "palette.bmp": {"format": "BMP"},
}


def mutated_images(tmp_path: Path, count: int) -> None:
    rng = random.Random(0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    originals = {}
    for name, options in FORMATS.items():
        buffer = io.BytesIO()
        (picture.quantize(32) if "palette" in name else picture).save(buffer, **options)
        originals[name] = buffer.getvalue()
    refused = 0
    for trial in range(count):
        name = list(FORMATS)[trial % len(FORMATS)]
        path = tmp_path / name
        path.write_bytes(mutate(originals[name], rng))
        started = time.process_time()
        shapes = []
        for read in (read_image, read_mask):
            try:
                array = read(path)
            except DataError as error:
                refused += 1
                said = str(error)
            else:
                said = name
                assert array.dtype == np.uint8
                assert array.ndim == (3 if read is read_image else 2)
                assert array.size > 0
                shapes.append(array.shape[:2])
            assert name in said
        # What can be read has the size that its header says.
        assert shapes == len(shapes) * [image_size(path)] if shapes else True
        assert time.process_time() - started < 2
    assert refused > count / 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
def test_s3_mutated_images_are_refused_or_read(tmp_path: Path) -> None:
    mutated_images(tmp_path, 3000)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_s3_mutated_images_are_refused_or_read_at_length(tmp_path: Path) -> None:
    mutated_images(tmp_path, 20_000)


def png_of_size(width: int, height: int) -> bytes:
    """Returns a PNG whose header promises that size, with little behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (8000, 8000), (16_385, 1), (1, 16_385), (2**31 - 1, 2**31 - 1)])
def test_s4_bombs_are_refused_from_the_header(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    read_refused(path)  # once, so that Pillow has loaded what it needs
    with at_most(seconds=0.05, megabytes=20):
        read_refused(path)


def test_s4_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    path = tmp_path / "bomb.jpg"
    path.write_bytes(content[:last] + 200 * content[last:-2] + b"\xff\xd9")
    with at_most(seconds=0.05, megabytes=20), pytest.raises(DataError, match=r"bomb\.jpg: .*\b100 scans\b"):
        read_image(path)
    path.write_bytes(content)
    assert read_image(path).shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["bomb.webp", "bomb.png"])
def test_s4_files_of_too_many_bytes_are_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path)
    with path.open("ab") as file:
        file.truncate(1 << 30)  # a hole, which takes no space
    with at_most(seconds=0.05, megabytes=20):
        for read in (read_image, read_mask, image_size):
            with pytest.raises(DataError, match=rf"{name}: {path.stat().st_size:,} bytes"):
                read(path)


def test_s4_a_set_of_small_files_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    """The doctor and the scan, in a process of their own, of images of 50 megapixels; four at a time took 3.9 GB."""
    images, masks, side = tmp_path / "images", tmp_path / "masks", 7071
    images.mkdir()
    masks.mkdir()
    picture = Image.new("RGBA", (side, side), (10, 20, 30, 40))
    picture.save(images / "a.tif", compression="tiff_adobe_deflate", tiffinfo={278: side})  # all rows in one strip
    picture.save(images / "b.webp", lossless=True, quality=0, method=0)
    Image.new("L", (side, side), 1).save(masks / "a.png", compress_level=1)
    (masks / "b.png").hardlink_to(masks / "a.png")
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) < 4_000_000
    (tmp_path / "train.txt").write_text("a\nb\n")
    script = """
import sys
from pathlib import Path
from exfuse.data.datasets import open_dataset
from exfuse.data.doctor import validate
from exfuse.data.stats import compute_stats
dataset = open_dataset(Path(sys.argv[1]), "train")
assert validate(dataset).errors == 0
assert compute_stats(dataset).pixel_counts[1] == 2 * 7071 * 7071
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
print(status.split("VmHWM:")[1].split()[0])
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < 1e9


def tiff_with(tags: dict[int, tuple[int, ...]], piece: bytes) -> bytes:
    return image_variants.tiff({258: (8,) * 3, 262: (2,), 277: (3,)} | tags, [piece])


EMPTY = zlib.compress(bytes(1000))


COSTLY = {
    "tile.tif": lambda: tiff_with({259: (8,), 322: (16_000,), 323: (16_000,), 324: (8,), 325: (len(EMPTY),)}, EMPTY),
    "runs.bmp": lambda: image_variants.bmp(8, b"\1\1" * 2_000_000, image_variants.PALETTE, 1),
    "segments.jpg": lambda: b"\xff\xd8" + b"\xff\xe1\xff\xffExif\0\0".ljust(65_537, b"\1") * 100 + jpeg()[2:],
    "empty segments.jpg": lambda: b"\xff\xd8" + b"\xff\xe2\0\2" * 500_000 + jpeg()[2:],
    "between segments.jpg": lambda: b"\xff\xd8\xff\xe2\0\2" + bytes(3_000_000) + jpeg()[2:],
    "chunks.png": lambda: image_variants.png(
        (8, 0, 0, 0, 0), [(b"teXt", b"")] * 300_000 + [image_variants.png_pixels(image_variants.GREY, 8)]
    ),
}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", COSTLY)
def test_s4_what_would_take_long_is_refused_from_the_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(COSTLY[name]())
    with at_most(seconds=1, megabytes=30):
        for read in (read_image, read_mask, image_size):
            with pytest.raises(DataError, match=name):
                read(path)


def test_s4_a_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (7000, 7000)).save(path, compress_level=1)
    image_size(path)
    with at_most(seconds=0.1, megabytes=10):
        assert image_size(path) == (7000, 7000)


def test_broken_files_leave_the_terminal_clean(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng, names = random.Random(0), []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    for number, compression in enumerate(10 * ["tiff_lzw", "tiff_adobe_deflate", "jpeg"]):
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression=compression)
        broken = bytearray(buffer.getvalue())
        for place in rng.sample(range(100, 1500), 20):
            broken[place] ^= 0x55
        (tmp_path / "images" / f"{number}.tif").write_bytes(broken)
        Image.new("L", (56, 40)).save(tmp_path / "masks" / f"{number}.png")
        names.append(f"{number}\n")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("".join(names))
    command = [sys.executable, "-m", "exfuse", "doctor", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "readable" in result.stdout
    assert result.stderr == ""


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"a\.png: .*regular file"):
            read(tmp_path / "a.png")


def read_refused(path: Path) -> None:
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"bomb\.png"):
            read(path)
