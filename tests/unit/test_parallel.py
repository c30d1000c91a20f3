import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data import parallel
from exfuse.data.parallel import map_images
from exfuse.data.samples import read_image
from exfuse.errors import DataError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    sides = [(3, 4), (20, 20), (1, 1), (50, 50), (5, 5), (30, 30), (2, 2), (10, 10)] * 3
    paths = []
    for number, side in enumerate(sides):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.full(side, number, np.uint8)).save(paths[-1])
    return paths


def test_results_come_in_order_and_never_more_pixels_than_allowed_are_at_work(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "MAX_PIXELS", 1000)
    lock, at_work, most = threading.Lock(), [], []

    def read(path: Path) -> int:
        pixels = read_image(path)
        area = pixels.shape[0] * pixels.shape[1]
        with lock:
            at_work.append(area)
            most.append((sum(at_work), len(at_work)))
        time.sleep(0.002)
        with lock:
            at_work.remove(area)
        return int(pixels[0, 0, 0])

    assert list(map_images(read, paths, lambda path: [path])) == list(range(len(paths)))
    assert all(area <= 1000 or count == 1 for area, count in most)
    assert max(count for _, count in most) > 1


def test_an_error_comes_in_its_turn(paths: list[Path]) -> None:
    paths[5].write_bytes(b"no image")
    seen = []
    images = map_images(read_image, paths, lambda path: [path])
    with pytest.raises(DataError, match=r"5\.png"):
        seen.extend(int(image[0, 0, 0]) for image in images)
    assert seen == [0, 1, 2, 3, 4]
