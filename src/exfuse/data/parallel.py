"""Reading many images at a time without holding many pixels at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from exfuse.data.image_files import MAX_PIXELS
from exfuse.data.samples import image_size
from exfuse.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 4
PENDING_RESULTS = 2 * THREADS  # results that may wait to be taken


def map_images(
    function: Callable[[Item], Result], items: Iterable[Item], paths: Callable[[Item], Iterable[Path]]
) -> Iterator[Result]:
    """Calls a function that reads images in several threads; yields its results in order.

    What is read at once has `MAX_PIXELS` by its headers: many small images, or one of the largest and its mask.

    Args:
        function: Called with each item.
        items: What to call it with.
        paths: Returns the image files that the function will read.

    Raises:
        Exception: What the function raises, in its item's turn.
    """
    running: deque[tuple[Future[Result], int]] = deque()
    at_once = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            pixels = sum(_pixels(path) for path in paths(item))
            while running and (at_once + pixels > MAX_PIXELS or len(running) >= PENDING_RESULTS):
                yield running[0][0].result()
                at_once -= running.popleft()[1]
            if pixels > MAX_PIXELS // 2:
                # Not in a thread: what the C library keeps of its memory would not serve the next one.
                while running:
                    yield running.popleft()[0].result()
                yield function(item)
                at_once = 0
            else:
                running.append((pool.submit(function, item), pixels))
                at_once += pixels
        while running:
            yield running.popleft()[0].result()


def _pixels(path: Path) -> int:
    try:
        height, width = image_size(path)
    except DataError:  # which the function will raise as well, in its own words
        return 0
    return height * width
