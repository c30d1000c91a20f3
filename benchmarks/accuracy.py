"""What each engine and format makes of a trained model: mean IoU, and labels against eager torch in fp32.

python benchmarks/accuracy.py [--split val] MODEL DATA [EXPORT ...]
"""

import argparse
import time
from pathlib import Path

import numpy as np

from exfuse.data.datasets import open_dataset
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.inference.engines.base import Engine
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.metrics import ConfusionMatrix
from exfuse.models.folding import fold
from exfuse.models.storage.pretrained import load_pretrained
from exfuse.predictor import Predictor
from harness import Timing, write

REFERENCE = "torch fp32"
RATIO_TO = "openvino bf16"
FOLDED = "torch folded fp32"
CLEAR = 1e-5  # logits; the network's two best scores of a pixel are at least so far apart where its label is clear
ENGINES = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("compile", "fp32"),
    ("compile", "bf16"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)


def open_engines(model: Path, exports: list[Path]) -> dict[str, Engine]:
    """Returns every engine with the model, the folded network in eager torch, and the exports."""
    engines: dict[str, Engine] = {}
    for name, precision in ENGINES:
        engines[f"{name} {precision}"] = Predictor.from_pretrained(model, name, precision).engine  # type: ignore[arg-type]
    network, info = load_pretrained(model)
    engines[FOLDED] = TorchEngine(fold(network), info)
    for export in exports:
        program = export / "model.pt2"
        engine = ProgramEngine(program) if program.is_file() else Predictor.from_pretrained(export).engine
        engines[f"{export.name}: {engine.name} {engine.precision}"] = engine
    return engines


class Account:
    """What is counted of one engine.

    Attributes:
        matrix: Of its labels and the truth.
        equal: Pixels labelled as by the reference.
        differ: Pixels labelled otherwise although the reference is clear.
        seconds: Of each image.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.matrix = ConfusionMatrix(num_classes, ignore_index)
        self.equal = self.differ = 0
        self.seconds: list[float] = []


def main() -> None:
    """Labels a split with all of them, image by image, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("exports", type=Path, nargs="*")
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data, arguments.split)
    engines = open_engines(arguments.model, arguments.exports)
    accounts = {name: Account(len(dataset.classes), dataset.classes.ignore_index) for name in engines}
    for engine in engines.values():
        engine.labels(dataset[0].image[None])  # compiles what it needs
    rng, pixels = np.random.default_rng(0), 0
    for index in range(len(dataset)):
        sample = dataset[index]
        image = sample.image[None]
        best = np.partition(engines[REFERENCE].scores(image)[0], -2, axis=0)[-2:]
        clear = best[1] - best[0] > CLEAR
        labels = {}
        for name in rng.permutation(list(engines)).tolist():
            started = time.perf_counter()
            labels[name] = engines[name].labels(image)[0]
            accounts[name].seconds.append(time.perf_counter() - started)
        for name, account in accounts.items():
            same = labels[name] == labels[REFERENCE]
            account.matrix.update(labels[name], sample.mask)
            account.equal += int(same.sum())
            account.differ += int((~same & clear).sum())
        pixels += sample.mask.size
    rows, raw = [], []
    for name, account in accounts.items():
        timing = Timing(tuple(account.seconds), tuple(accounts[RATIO_TO].seconds))
        mean_iou, share = account.matrix.mean_iou(), account.equal / pixels
        figures = [f"{100 * mean_iou:.2f}", f"{share:.3%}", f"{account.differ:,}"]
        rows.append([name, *figures, f"{timing.median_ms:.0f}", timing.ratio_text()])
        facts = {"engine": name, "mean_iou": mean_iou, "labels_equal": share, "differ_where_clear": account.differ}
        raw.append(facts | timing.to_json())
    height, width = dataset[0].mask.shape
    write(
        f"accuracy-{arguments.data.name}",
        f"Engines and formats on {arguments.data.name} {arguments.split}",
        f"{len(dataset)} images of {width} x {height}, {pixels:,} pixels, each by all engines in an order drawn anew; "
        f"labels equal to those of the first row, and how many differ where its two best logits are more than "
        f"{CLEAR:g} apart. Milliseconds: median of the images, pixels to labels. Ratios of the time are to {RATIO_TO}, "
        "median of the images (least to greatest).",
        ["engine", "mean IoU", "labels equal", "differ where clear", "median ms", "ratio"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
