"""Reading several images at a time, with a limit on the pixels in memory."""

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
PENDING_RESULTS = 2 * THREADS  # results that may be running or waiting to be consumed


def map_images(
    function: Callable[[Item], Result], items: Iterable[Item], paths: Callable[[Item], Iterable[Path]]
) -> Iterator[Result]:
    """Calls a function that reads images in several threads, and yields its results in order.

    Images read at the same time have at most `MAX_PIXELS` together by their headers; a large image and its mask are
    read alone.

    Args:
        function: Called with each item.
        items: The arguments.
        paths: Returns the image files that the function will read for an item.

    Raises:
        Exception: Whatever the function raises for an item, when the item's turn comes.
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
                # Not in a thread: the C library would keep the freed memory for that thread only.
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
    except DataError:  # the function raises its own error for this file
        return 0
    return height * width
