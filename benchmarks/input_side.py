"""Reading and augmenting training samples, on one core.

python benchmarks/input_side.py DATA [--crop 320] [--samples 100]
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from exfuse.data.augment import Augmentation, jitter_colors
from exfuse.data.datasets import open_dataset
from exfuse.data.image_cache import build_image_cache
from exfuse.data.loader import AugmentedDataset, SampleKey
from exfuse.data.samples import read_image, read_mask
from exfuse.data.stats import compute_stats
from harness import interleave, write

WHOLE = "the whole way"
BATCH = 8


def over(of_sample: Callable[[int], object], samples: int, times: int) -> Callable[[], object]:
    """Returns a function that does it for the next sample in each round; all are done before, so files are warm.

    Args:
        of_sample: What to do with the sample of an index.
        samples: How many there are.
        times: How often it is called in a round.
    """
    for index in range(samples):
        of_sample(index)
    of_rounds = (index for index in itertools.cycle(range(samples)) for _ in range(times))
    following = itertools.chain((0, 0), of_rounds)  # two calls come before the first round
    return lambda: of_sample(next(following))


def main() -> None:
    """Measures each part of a sample's way, and the whole, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--samples", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
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
    with tempfile.TemporaryDirectory() as cache:
        os.environ["EXFUSE_CACHE"] = cache
        mapped = build_image_cache(dataset, compute_stats(dataset).fingerprint)
        sample, rng = dataset[0], np.random.default_rng(0)
        crop = augmentation(sample, rng).image
        ready = AugmentedDataset(dataset, augmentation, 0)
        batch = [ready[SampleKey(0, index)] for index in range(BATCH)]
        parts: dict[str, Callable[[int], object]] = {
            "decode the photograph": lambda index: read_image(dataset.entries[index].image),
            "read the mask": lambda index: read_mask(dataset.entries[index].mask),
            "both, checked": lambda index: dataset[index],
            "change the colours of a crop": lambda _: jitter_colors(crop, jitter, jitter, jitter, rng),
            "scale, crop, flip, change colours": lambda _: augmentation(sample, rng),
            WHOLE: lambda index: augmentation(dataset[index], rng),
            "the same with data.cache": lambda index: augmentation(mapped[index], rng),
            f"make a batch of {BATCH}, all of it": lambda _: default_collate(batch),
        }
        samples = min(arguments.samples, len(dataset))
        steps = {name: over(part, samples, 2 if name == WHOLE else 1) for name, part in parts.items()}
        timings = interleave(steps, WHOLE, samples)
    height, width = sample.mask.shape
    write(
        f"input-{arguments.data.name}",
        f"The input side, {arguments.data.name}",
        f"Images of {width} x {height}, crops of {arguments.crop}, one core, warm files; {samples} samples, in each "
        "round every part does the next one. Ratios are to the whole way, median of the rounds.",
        ["part", "ms", "ratio", "a second"],
        [
            [name, f"{timing.median_ms:.2f}", f"{timing.ratio:.2f}", f"{1000 / timing.median_ms:.0f}"]
            for name, timing in timings.items()
        ],
        [{"part": name, **timing.to_json()} for name, timing in timings.items()],
    )


if __name__ == "__main__":
    main()
