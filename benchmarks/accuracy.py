"""What each engine and format makes of a trained model: mean IoU, and labels against eager torch in fp32.

python benchmarks/accuracy.py [--split val] MODEL DATA [EXPORT ...]
"""

import argparse
import time
from pathlib import Path

import numpy as np

from exfuse.data.datasets import open_dataset
from exfuse.inference.engines.base import Engine
from exfuse.inference.predictor import Predictor
from exfuse.metrics import ConfusionMatrix
from harness import write

ENGINES = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("compile", "bf16"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)


def main() -> None:
    """Labels a split with all of them, image by image, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("exports", type=Path, nargs="*")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data, arguments.split)
    engines: dict[str, Engine] = {}
    for name, precision in ENGINES:
        engines[f"{name} {precision}"] = Predictor.from_pretrained(arguments.model, name, precision).engine  # type: ignore[arg-type]
    for export in arguments.exports:
        engine = Predictor.from_pretrained(export).engine
        engines[f"{export.name}: {engine.name} {engine.precision}"] = engine
    matrices = {name: ConfusionMatrix(len(dataset.classes), dataset.classes.ignore_index) for name in engines}
    equal = dict.fromkeys(engines, 0)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    pixels = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        reference = None
        for name, engine in engines.items():
            started = time.perf_counter()
            labels = engine.labels(sample.image[None])[0]
            seconds[name].append(time.perf_counter() - started)
            reference = labels if reference is None else reference
            matrices[name].update(labels, sample.mask)
            equal[name] += int((labels == reference).sum())
        pixels += sample.mask.size
    rows, raw = [], []
    for name, matrix in matrices.items():
        milliseconds = 1000 * float(np.median(seconds[name]))
        share = equal[name] / pixels
        rows.append([name, f"{100 * matrix.mean_iou():.2f}", f"{share:.3%}", f"{milliseconds:.0f}"])
        raw.append({"engine": name, "mean_iou": matrix.mean_iou(), "labels_equal": share, "median_ms": milliseconds})
    height, width = dataset[0].mask.shape
    write(
        f"accuracy-{arguments.data.name}",
        f"Engines and formats on {arguments.data.name} {arguments.split}",
        f"{len(dataset)} images of {width} x {height}, one after the other, each by all engines in turn; labels equal "
        "to those of the first row. Milliseconds: median of the images, pixels to labels.",
        ["engine", "mean IoU", "labels equal", "median ms"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
