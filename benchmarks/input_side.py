"""Reading and augmenting training samples, on one core.

python benchmarks/input_side.py DATA [--crop 320] [--samples 100]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from exfuse.data.augment import Augmentation, jitter_colors
from exfuse.data.datasets import open_dataset
from exfuse.data.decoded import decode
from exfuse.data.samples import read_image, read_mask
from exfuse.data.scan import scan_dataset
from harness import write


def milliseconds(of_sample: Callable[[int], object], samples: int) -> float:
    """Returns the median over the samples, each done twice and timed the second time: from warm files."""
    taken = []
    for index in range(samples):
        of_sample(index)
        started = time.perf_counter()
        of_sample(index)
        taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(taken))


def main() -> None:
    """Measures each part of a sample's way, and the whole, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    dataset = open_dataset(arguments.data, "train")
    jitter = 0.3
    augmentation = Augmentation(
        crop_size=(arguments.crop, arguments.crop),
        scale=(0.6, 2.0),
        flip=0.5,
        brightness=jitter,
        contrast=jitter,
        saturation=jitter,
        fill=(105, 108, 110),
        ignore_index=dataset.classes.ignore_index,
    )
    mapped = decode(dataset, scan_dataset(dataset).fingerprint)
    sample, rng = dataset[0], np.random.default_rng(0)
    crop = augmentation(sample, rng).image
    parts = {
        "decode the photograph": lambda index: read_image(dataset.entries[index].image),
        "read the mask": lambda index: read_mask(dataset.entries[index].mask),
        "both, checked": lambda index: dataset[index],
        "change the colours of a crop": lambda _: jitter_colors(crop, jitter, jitter, jitter, rng),
        "scale, crop, flip, change colours": lambda _: augmentation(sample, rng),
        "the whole way": lambda index: augmentation(dataset[index], rng),
        "the same with data.cache": lambda index: augmentation(mapped[index], rng),
    }
    measured = {name: milliseconds(part, min(arguments.samples, len(dataset))) for name, part in parts.items()}
    height, width = sample.mask.shape
    write(
        f"input-{arguments.data.name}",
        f"The input side, {arguments.data.name}",
        f"Images of {width} x {height}, crops of {arguments.crop}, one core, warm files; median of the samples.",
        ["part", "ms", "samples a second"],
        [[name, f"{value:.2f}", f"{1000 / value:.0f}"] for name, value in measured.items()],
        measured,
    )


if __name__ == "__main__":
    main()
