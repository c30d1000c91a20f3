"""Overlays and their legends."""

import numpy as np
import pytest
from PIL import Image

from exfuse.data.classes import voc_palette
from exfuse.drawing import NAME_LENGTH, blend, drawn_name, one_line, with_legend
from support.nasty import NASTY_NAMES


def test_black_leaves_the_photograph_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    labels = np.zeros((6, 9), np.uint8)
    labels[:, 3:6] = 15
    labels[:, 6:] = 255  # beyond the palette
    palette = voc_palette(21)
    blended = np.array(blend(image, labels, palette, 0.5)).astype(int)
    np.testing.assert_array_equal(blended[:, :3], image[:, :3])
    np.testing.assert_array_equal(blended[:, 6:], image[:, 6:])
    expected = (image[:, 3:6].astype(int) + palette[15]) / 2
    assert np.abs(blended[:, 3:6] - expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (40, 30), (900, 2)])
@pytest.mark.parametrize("names", [("background", "person"), NASTY_NAMES, ("W" * 500,), ()])
def test_a_legend_is_whole_however_narrow_the_picture(size: tuple[int, int], names: tuple[str, ...]) -> None:
    entries = [(name, (200, 10 + index, 99)) for index, name in enumerate(names)]
    picture = Image.new("RGB", size, (1, 2, 3))
    canvas = np.array(with_legend(picture, entries))
    np.testing.assert_array_equal(canvas[: size[1], : size[0]], np.array(picture))
    legend = canvas[size[1] :]
    for _, color in entries:
        rows, columns = np.nonzero((legend == color).all(axis=-1))
        assert len(rows) == 12 * 12, "each patch is whole"
        assert columns.max() - columns.min() == rows.max() - rows.min() == 11
    assert (legend[:, -2:] == 255).all(), "no name is cut off at the right"
    assert (legend[-1:] == 255).all(), "nor at the bottom"
    assert size[0] <= canvas.shape[1] <= max(size[0], 60 + 15 * NAME_LENGTH)


def test_the_legend_of_one_pixel_is_as_wide_as_its_names() -> None:
    one = Image.new("RGB", (1, 1))
    short, long = (with_legend(one, [(name, (1, 2, 3))]) for name in ("car", "a car of another kind"))
    assert 45 < short.width < long.width < 250
    both = with_legend(one, [("car", (1, 2, 3)), ("a car of another kind", (4, 5, 6))])
    assert both.width == long.width
    assert both.height > long.height


def test_what_is_not_painted_has_an_empty_patch() -> None:
    canvas = np.array(with_legend(Image.new("RGB", (200, 1), "red"), [("background", (0, 0, 0))]))
    assert (canvas[7:17, 9:19] == 255).all()


@pytest.mark.parametrize("name", NASTY_NAMES)
def test_a_drawn_name_is_one_short_line(name: str) -> None:
    shown = drawn_name(name)
    assert len(shown) <= NAME_LENGTH
    assert shown.isprintable()
    shown.encode()
    assert shown == (one_line(name) if len(one_line(name)) <= NAME_LENGTH else "x" * 39 + "…")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("traffic light", "traffic light"),
        (r"$\frac{$", r"$\frac{$"),
        (" two\n\tlines\u2028", "two lines"),
        ("\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
        ("a\u202eb\ud800", "a\ufffdb\ufffd"),
        ("👩\u200d🚀 ü 中 قطة", "👩\u200d🚀 ü 中 قطة"),
    ],
)
def test_one_line_keeps_letters_and_nothing_that_controls(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_legend_tells_letters_beyond_ascii_apart() -> None:
    one, color = Image.new("RGB", (40, 1)), (200, 30, 40)
    drawn = {np.array(with_legend(one, [(name, color)])).tobytes() for name in ("é", "ß", "Ж", "λ")}
    assert len(drawn) == 4
