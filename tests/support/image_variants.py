"""One and the same picture in every mode, depth and format that Pillow and OpenCV write, and in more made by hand.

To extend it, add a generator to `pictures`; each yields variants whose truth is known without reading the file.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40
ROW, COLUMN = np.mgrid[:HEIGHT, :WIDTH]
PICTURE = np.stack(
    [255 * COLUMN // (WIDTH - 1), 255 * ROW // (HEIGHT - 1), 255 - 255 * (ROW + COLUMN) // (HEIGHT + WIDTH - 2)],
    axis=-1,
).astype(np.uint8)
GREY = PICTURE[..., 0]
ALPHA = PICTURE[..., 1]
LABELS = ((ROW // 6 + COLUMN // 8) % 4).astype(np.uint8)
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
LOSSY = 8.0  # the largest mean difference of a picture that was compressed with loss
ROUNDED = 1.5  # and of one that was turned into YCbCr and back


@dataclass(frozen=True)
class Variant:
    """A file.

    Attributes:
        name: What wrote it, and how.
        content: Its bytes.
        truth: The colours that the picture has, uint8 `(H, W, 3)`, or labels `(H, W)`.
        tolerance: The largest mean difference with which it was read right.
    """

    name: str
    content: bytes
    truth: np.ndarray
    tolerance: float = 0.0


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def colored(indices: np.ndarray) -> np.ndarray:
    return PALETTE[indices]


def with_palette(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putpalette(PALETTE[: int(indices.max()) + 1].ravel().tolist())
    return image


def in_modes(grey: np.ndarray) -> dict[str, tuple[Image.Image, np.ndarray]]:
    """Returns the picture in every mode of Pillow, with the colours it stands for in it."""
    rgb, bilevel = Image.fromarray(PICTURE), (grey > 127).astype(np.uint8) * 255
    rgba = Image.fromarray(np.dstack([PICTURE, ALPHA]))
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(ALPHA)])
    palette = with_palette(grey)
    transparent = with_palette(grey)
    transparent.info["transparency"] = bytes(range(256))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    big_endian = Image.frombytes("I;16B", sixteen.size, (grey.astype(np.uint16) * 257).astype(">u2").tobytes())
    return {
        "1": (Image.fromarray(bilevel).convert("1"), grey_to_rgb(bilevel)),
        "L": (Image.fromarray(grey), grey_to_rgb(grey)),
        "LA": (la, grey_to_rgb(grey)),
        "La": (la.convert("La"), grey_to_rgb(grey)),
        "P": (palette, colored(grey)),
        "P with tRNS": (transparent, colored(grey)),
        "PA": (palette.convert("PA"), colored(grey)),
        "RGB": (rgb, PICTURE),
        "RGBA": (rgba, PICTURE),
        "RGBX": (rgb.convert("RGBX"), PICTURE),
        "RGBa": (rgba.convert("RGBa"), PICTURE),
        "CMYK": (rgb.convert("CMYK"), PICTURE),
        "YCbCr": (rgb.convert("YCbCr"), PICTURE),
        "HSV": (rgb.convert("HSV"), PICTURE),
        "LAB": (Image.merge("LAB", rgb.split()), PICTURE),
        "I": (Image.fromarray(grey.astype(np.int32) * 65_537), grey_to_rgb(grey)),
        "I of 8 bits": (Image.fromarray(grey.astype(np.int32)), grey_to_rgb(grey)),
        "F": (Image.fromarray(grey.astype(np.float32) / 255), grey_to_rgb(grey)),
        "I;16": (sixteen, grey_to_rgb(grey)),
        "I;16 of 12 bits": (Image.fromarray(grey.astype(np.uint16) * 16), grey_to_rgb(grey)),
        "I;16B": (big_endian, grey_to_rgb(grey)),
    }


OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "PNG": ({},),
    "JPEG": ({}, {"quality": 95, "subsampling": 0}, {"progressive": True}),
    "WEBP": ({"lossless": True, "exact": True}, {"quality": 95}),
    "TIFF": tuple(
        {"compression": name, **more}
        for name in (
            "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "zstd", "lzma", "webp", "jpeg",
            "group3", "group4", "tiff_ccitt", "tiff_jpeg",
        )
        for more in ({}, *([{"big_tiff": True}] * (name == "raw")), *([{"tiffinfo": {317: 2}}] * (name == "tiff_lzw")))
    ),
}  # fmt: skip


def written_by_pillow(modes: dict[str, tuple[Image.Image, np.ndarray]]) -> Iterator[Variant]:
    """Yields what Pillow writes of images, given with what each means; no documents."""
    Image.init()
    formats = sorted(set(Image.SAVE) - {"PDF", "EPS", "IM"})
    for (mode, (image, truth)), form in itertools.product(modes.items(), formats):
        for options in OPTIONS.get(form, ({},)):
            buffer = io.BytesIO()
            buffer.name = f"a.{form.lower()}"
            if form == "WEBP" and image.mode not in ("RGB", "RGBA", "RGBX"):
                continue  # Pillow would convert it first
            try:
                image.save(buffer, form, **options)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SystemError):
                continue  # Pillow cannot write it
            is_lossy = form not in ("PNG", "BMP", "TIFF", "WEBP") or "quality" in options
            is_lossy |= options.get("compression") in ("jpeg", "tiff_jpeg", "webp")
            tolerance = LOSSY if is_lossy else ROUNDED if mode == "YCbCr" else 0
            yield Variant(f"Pillow, mode {mode}, {form} {options}", buffer.getvalue(), truth, tolerance)


# What numbers of each type are multiplied by so that they mean the same as 8 bits.
SCALES: dict[Any, float] = {
    np.uint8: 1, np.uint16: 257, np.int16: 128, np.uint32: 16_843_009, np.int32: 8_421_504, np.float32: 1 / 255,
    np.float64: 1 / 255, np.float16: 1 / 255,
}  # fmt: skip
SUFFIXES = (
    "png", "jpg", "bmp", "webp", "tif", "jp2", "ppm", "pgm", "pbm", "pxm", "pam", "hdr", "pic", "exr", "pfm", "ras",
    "avif", "gif",
)  # fmt: skip
LOSSLESS_FLAGS = {
    "webp": ([cv2.IMWRITE_WEBP_QUALITY, 101],),
    "tif": tuple([cv2.IMWRITE_TIFF_COMPRESSION, number] for number in (1, 5, 8, 32773, 32946, 50000)),
}


def written_by_opencv(grey: np.ndarray, in_grey: np.ndarray, in_color: np.ndarray) -> Iterator[Variant]:
    """Yields what OpenCV writes, in every type of numbers and with 1 to 4 channels."""
    blue_green_red = PICTURE[..., ::-1]
    channels = {1: grey, 2: np.dstack([grey, ALPHA]), 3: blue_green_red, 4: np.dstack([blue_green_red, ALPHA])}
    for (kind, scale), (count, planes), suffix in itertools.product(SCALES.items(), channels.items(), SUFFIXES):
        for flags in LOSSLESS_FLAGS.get(suffix, ((),)):
            with suppress(cv2.error, SystemError, TypeError):
                numbers = (planes.astype(np.float64) * scale).astype(kind)
                written, content = cv2.imencode(f".{suffix}", numbers, flags)
                if written:
                    # Without the option to keep them, WebP changes colours that are not to be seen.
                    is_lossy = suffix in ("jpg", "jp2", "avif", "gif") or (suffix == "webp" and count == 4)
                    tolerance = LOSSY if is_lossy else 0
                    truth = in_grey if count <= 2 else in_color
                    read = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
                    if kind is not np.uint8 and read is not None and read.dtype == np.uint8:
                        # OpenCV clipped the numbers itself, so that this is what the file holds.
                        clipped = np.rint(np.clip(numbers.astype(np.float64), 0, 255)).astype(np.uint8)
                        truth = grey_to_rgb(clipped) if count == 1 else clipped[..., 2::-1]
                    yield Variant(
                        f"OpenCV, {count} x {kind.__name__}, {suffix} {flags}", content.tobytes(), truth, tolerance
                    )


def tiff(tags: dict[int, tuple[int, ...]], strips: list[bytes], order: str = "<") -> bytes:
    """Returns a TIFF file; its image is `WIDTH` x `HEIGHT` unless the tags say otherwise."""
    marks = {"<": b"II*\0", ">": b"MM\0*"}
    content = marks[order] + struct.pack(order + "I", 0)
    offsets = []
    for strip in strips:
        offsets.append(len(content))
        content += strip + bytes(len(strip) % 2)
    sizes = tuple(len(strip) for strip in strips)
    tags = {256: (WIDTH,), 257: (HEIGHT,), 259: (1,), 273: tuple(offsets), 277: (1,), 279: sizes} | tags
    entries = b""
    for tag, values in sorted(tags.items()):
        kind, form = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > 4:
            packed, content = struct.pack(order + "I", len(content)), content + packed
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = struct.pack(order + "I", len(content))
    return content[:4] + start + content[8:] + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Returns rows of numbers of 1 to 64 bits, each row beginning with a new byte."""
    if bits >= 8:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    each = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(each.reshape(len(values), -1), axis=-1).tobytes()


def tiffs_by_hand() -> Iterator[Variant]:
    """Yields what TIFF allows: depths, signs, extra channels, planes, orders of bytes and bits, colour spaces."""
    deflate = zlib.compress
    for order, bits, photometric in itertools.product("<>", (1, 2, 4, 8, 16, 32), (0, 1, 3)):
        top = 2**bits - 1
        numbers = np.round(GREY / 255 * top).astype(np.uint64)
        for sample_format, fill in ((1, 1), (1, 2), (2, 1), (3, 1), (4, 1)):
            shown = np.round((top - numbers if photometric == 0 else numbers) * (255 / top)).astype(np.uint8)
            tags = {258: (bits,), 262: (photometric,), 266: (fill,), 339: (sample_format,)}
            truth = grey_to_rgb(shown)
            if photometric == 3:
                if bits > 8:
                    continue
                tags[320] = tuple((257 * PALETTE[: top + 1].astype(int)).T.ravel().tolist())
                truth = colored(numbers.astype(np.uint8))
            rows = packed(numbers, bits, order)
            if fill == 2:
                rows = bytes(int(f"{byte:08b}"[::-1], 2) for byte in rows)
            for compression, pack in ((1, bytes), (8, deflate), (5, None)):
                if pack:
                    name = f"TIFF {order}, {bits} bits, {photometric=}, {sample_format=}, {fill=}, {compression=}"
                    turned = rows if compression == 1 else deflate(packed(numbers, bits, order))
                    if fill == 2 and compression != 1:
                        turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in turned)
                    yield Variant(name, tiff(tags | {259: (compression,)}, [turned], order), truth)
    planes = [PICTURE[..., channel] for channel in range(3)] + [ALPHA, GREY]
    for order, bits, count, extra, planar in itertools.product("<>", (8, 16), (3, 4, 5), (None, 0, 1, 2), (1, 2)):
        if (extra is None) != (count == 3):
            continue
        tags = {258: (bits,) * count, 262: (2,), 277: (count,), 284: (planar,)}
        if extra is not None:
            tags[338] = (extra,) + (0,) * (count - 4)
        wide = [plane.astype(np.uint64) * (1 if bits == 8 else 257) for plane in planes[:count]]
        strips = (
            [packed(np.dstack(wide), bits, order)] if planar == 1 else [packed(plane, bits, order) for plane in wide]
        )
        for compression, pack in ((1, bytes), (8, deflate)):
            name = f"TIFF {order}, {count} x {bits} bits, {extra=}, {planar=}, {compression=}"
            yield Variant(name, tiff(tags | {259: (compression,)}, [pack(strip) for strip in strips], order), PICTURE)
    # The second half of the rows is missing.
    half = {258: (8,), 262: (1,), 278: (HEIGHT // 2,)}
    yield Variant("TIFF, a strip too few", tiff(half, [GREY[: HEIGHT // 2].tobytes()]), grey_to_rgb(GREY))
    strips = [GREY[: HEIGHT // 2].tobytes(), GREY[HEIGHT // 2 :].tobytes()]
    yield Variant("TIFF, two strips", tiff(half, strips), grey_to_rgb(GREY))
    yield Variant("TIFF, a strip too many", tiff(half, [*strips, bytes(len(strips[0]))]), grey_to_rgb(GREY))
    for values, name in (
        (PALETTE.astype(int), "8 of 16"),
        (PALETTE.astype(int) * 256, "256 x"),
        (PALETTE.astype(int) * 257 + 9, "other"),
    ):
        tags = {258: (8,), 262: (3,), 320: tuple(np.clip(values, 0, 65_535).astype(int).T.ravel().tolist())}
        yield Variant(f"TIFF, colour map {name}", tiff(tags, [GREY.tobytes()]), colored(GREY))
    ycbcr = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
    blocks = np.dstack(
        [
            ycbcr[0::2, 0::2, :1],
            ycbcr[0::2, 1::2, :1],
            ycbcr[1::2, 0::2, :1],
            ycbcr[1::2, 1::2, :1],
            ycbcr[0::2, 0::2, 1:],
        ]
    )
    tags = {258: (8, 8, 8), 262: (6,), 277: (3,)}
    for sampling, content in (((1, 1), ycbcr), ((2, 2), blocks), (None, blocks)):
        more = {} if sampling is None else {530: sampling}
        yield Variant(f"TIFF, YCbCr {sampling}", tiff(tags | more, [content.tobytes()]), PICTURE, ROUNDED)
    tags = {258: (8,) * 4, 262: (5,), 277: (4,)}
    inks = np.dstack([255 - PICTURE, np.zeros_like(GREY)])
    for ink_set in (1, 2):
        yield Variant(f"TIFF, {ink_set=}", tiff(tags | {332: (ink_set,)}, [inks.tobytes()]), PICTURE)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(header: tuple[int, ...], chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Returns a PNG; the header is the depth, the type of colour and four more bytes of IHDR."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, *header)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_pixels(numbers: np.ndarray, bits: int) -> tuple[bytes, bytes]:
    """Returns the chunk of an image's pixels."""
    rows = packed(numbers.reshape(HEIGHT, -1), bits, ">")
    length = len(rows) // HEIGHT
    return b"IDAT", zlib.compress(b"".join(b"\0" + rows[row * length :][:length] for row in range(HEIGHT)))


def pngs_by_hand() -> Iterator[Variant]:
    """Yields each depth and type of colour that PNG has, also with a transparent colour."""
    types = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    channels = {
        0: (GREY,),
        2: tuple(PICTURE.transpose(2, 0, 1)),
        3: (GREY,),
        4: (GREY, ALPHA),
        6: (*PICTURE.transpose(2, 0, 1), ALPHA),
    }
    for (kind, depths), transparent in itertools.product(types.items(), (False, True)):
        for bits in depths:
            top = 2**bits - 1
            numbers = np.round(np.dstack(channels[kind]) / 255 * top).astype(np.uint64)
            truth = np.round(numbers * (255 / top)).astype(np.uint8)
            truth = grey_to_rgb(truth[..., 0]) if kind in (0, 4) else truth[..., :3]
            chunks = [png_pixels(numbers, bits)]
            if kind == 3:
                chunks.insert(0, (b"PLTE", PALETTE[: top + 1].tobytes()))
                truth = colored(numbers[..., 0].astype(np.uint8))
            if transparent:
                chunks.insert(-1, (b"tRNS", {0: bytes(2), 2: bytes(6), 3: b"\0\x80"}.get(kind, b"")))
            yield Variant(f"PNG, {kind=}, {bits} bits, {transparent=}", png((bits, kind, 0, 0, 0), chunks), truth)


def bmp(
    bits: int, rows: bytes, palette: np.ndarray | None = None, compression: int = 0, masks: tuple[int, ...] = ()
) -> bytes:
    """Returns a BMP whose rows begin with the lowest one."""
    colors = (
        b""
        if palette is None
        else np.dstack([palette[None, :, ::-1], np.zeros((1, len(palette), 1), np.uint8)]).tobytes()
    )
    size = 108 if masks else 40
    offset = 14 + size + len(colors)
    header = struct.pack("<IIIHHIIIIII", size, WIDTH, HEIGHT, 1, bits, compression, 0, 0, 0, len(colors) // 4, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header.ljust(size, b"\0") + colors + rows


def bmps_by_hand() -> Iterator[Variant]:
    """Yields BMP files of each depth, with palettes of colours, of greys, and of black and white alone, and masks."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=-1)
    two = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    palettes = {"colours": PALETTE, "greys": greys, "black and white": two, "white and black": two[::-1]}
    for bits, (name, palette) in itertools.product((1, 4, 8), palettes.items()):
        palette = palette[: 2**bits]
        numbers = (GREY.astype(int) * len(palette) // 256).astype(np.uint8)
        rows = packed(np.pad(numbers[::-1], ((0, 0), (0, 32 - WIDTH % 32))), bits)
        length = (WIDTH * bits + 31) // 32 * 4
        stride = len(rows) // HEIGHT
        rows = b"".join(rows[row * stride :][:length] for row in range(HEIGHT))
        yield Variant(f"BMP, {bits} bits, {name}", bmp(bits, rows, palette), palette[numbers])
    runs = b"".join(bytes([1, value]) for value in GREY[-1]) + b"\0\0"
    yield Variant(
        "BMP, runs", bmp(8, HEIGHT * runs + b"\0\1", PALETTE, 1), colored(np.repeat(GREY[-1:], HEIGHT, axis=0))
    )
    red, green, blue = (PICTURE[::-1, :, channel].astype(np.uint32) for channel in range(3))
    alpha = ALPHA[::-1].astype(np.uint32)
    for shifts in itertools.permutations((0, 8, 16, 24)):
        pixels = sum(plane << shift for plane, shift in zip((red, green, blue, alpha), shifts, strict=True))
        masks = tuple(255 << shift for shift in shifts)
        for kept in (masks, (*masks[:3], 0)):
            content = bmp(32, np.asarray(pixels, "<u4").tobytes(), None, 3, kept)
            yield Variant(f"BMP, masks {kept}", content, PICTURE)
    for masks, shifts, depths in (
        ((0x7C00, 0x3E0, 0x1F), (10, 5, 0), (5, 5, 5)),
        ((0xF800, 0x7E0, 0x1F), (11, 5, 0), (5, 6, 5)),
    ):
        numbers = [
            np.round(plane / 255 * (2**depth - 1)).astype(np.uint32)
            for plane, depth in zip((red, green, blue), depths, strict=True)
        ]
        pixels = sum(number << shift for number, shift in zip(numbers, shifts, strict=True))
        truth = np.dstack(
            [np.round(number[::-1] * (255 / (2**depth - 1))) for number, depth in zip(numbers, depths, strict=True)]
        )
        yield Variant(
            f"BMP, 16 bits {masks}",
            bmp(16, np.asarray(pixels, "<u2").tobytes(), None, 3, (*masks, 0)),
            truth.astype(np.uint8),
        )


def animations() -> Iterator[Variant]:
    """Yields files of two images, of which nobody says which one is meant."""
    first, second = Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)
    for form, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ):
        buffer = io.BytesIO()
        second.save(buffer, form, save_all=True, append_images=[first], **options)
        yield Variant(f"{form} of two images {options}", buffer.getvalue(), PICTURE)


def pictures() -> list[Variant]:
    """Returns all of them, each file once."""
    variants = itertools.chain(
        written_by_pillow(in_modes(GREY)),
        written_by_opencv(GREY, grey_to_rgb(GREY), PICTURE),
        tiffs_by_hand(),
        pngs_by_hand(),
        bmps_by_hand(),
        animations(),
    )
    return without_copies(variants)


def without_copies(variants: Iterable[Variant]) -> list[Variant]:
    """Returns the first variant of each content."""
    first: dict[bytes, Variant] = {}
    for variant in variants:
        first.setdefault(variant.content, variant)
    return list(first.values())
