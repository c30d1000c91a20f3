"""Large images in tiles: time and peak memory against the number of pixels, and how labels differ from the whole's.

python benchmarks/tiles.py MODEL DATA [--tile 1024] [--overlap 192]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exfuse.data.datasets import open_dataset
from exfuse.inference.large import predict_large
from exfuse.inference.predictor import Predictor
from exfuse.inference.tiles import Tiling, cut, label_strips
from harness import RESULTS, environment, peak_gib, write

SIDES = (2000, 4000, 6000, 8000, 10_000)
COMPARED = Tiling(256, 96)  # on images of a few hundred pixels a side, so that there is a whole to compare with


def segment(model: Path, side: int, tiling: Tiling) -> dict[str, float]:
    """Segments a square image, and returns seconds and the peak memory of this process."""
    small = np.random.default_rng(0).integers(0, 256, (side // 50, side // 50, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(small, 50, axis=0), 50, axis=1)
    predictor = Predictor.from_pretrained(model)
    predictor.scores(image[: tiling.tile, : tiling.tile])  # compiles what tiles need
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        predict_large(predictor, image, tiling, Path(folder) / "mask.png")
        return {"seconds": time.perf_counter() - started, "gib": peak_gib()}


def agreement(model: Path, data: Path) -> tuple[float, float]:
    """Returns which share of labels is that of the whole image: of all, and of those that one tile alone has."""
    engine, dataset = Predictor.from_pretrained(model).engine, open_dataset(data, "val")
    equal, single = [], []
    for index in range(len(dataset)):
        image = dataset[index].image
        same = np.concatenate(list(label_strips(engine, image, COMPARED))) == engine.labels(image[None])[0]
        alone = [np.zeros(side, dtype=np.int64) for side in same.shape]
        for tiles, side in zip(alone, same.shape, strict=True):
            for start, end in cut(side, COMPARED):
                tiles[start:end] += 1
        equal.append(same.mean())
        single.append(same[alone[0] == 1][:, alone[1] == 1].mean())
    return float(np.mean(equal)), float(np.mean(single))


def draw(path: Path, results: list[dict[str, float]]) -> None:
    """Draws seconds and memory against megapixels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    megapixels = [result["side"] ** 2 / 1e6 for result in results]
    for axes, key, label in zip(figure.subplots(1, 2), ("seconds", "gib"), ("seconds", "peak GiB"), strict=True):
        axes.plot(megapixels, [result[key] for result in results], "o-")
        axes.set(xlabel="megapixels", ylabel=label, xlim=(0, None), ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures all sizes, each in a process of its own, and writes the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=192)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tiling = Tiling(arguments.tile, arguments.overlap)
    if arguments.side:
        print(json.dumps(segment(arguments.model, arguments.side, tiling)))
        return
    rows, raw = [], []
    for side in SIDES:
        command = [sys.executable, __file__, arguments.model, arguments.data, "--side", side, "--tile", tiling.tile]
        command += ["--overlap", tiling.overlap]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        megapixels = side * side / 1e6
        of_megapixel = result["seconds"] / megapixels
        rows.append([f"{side:,} x {side:,}", f"{result['seconds']:.1f}", f"{of_megapixel:.2f}", f"{result['gib']:.2f}"])
        raw.append({"side": side, **result})
    equal, single = agreement(arguments.model, arguments.data)
    figure = RESULTS / f"{environment()['date']}-tiles.png"
    RESULTS.mkdir(parents=True, exist_ok=True)
    draw(figure, raw)
    write(
        "tiles",
        "Large images in tiles",
        f"Tiles of {tiling.tile} pixels with an overlap of {tiling.overlap}; from pixels in memory to a PNG on "
        "the disk. Peak memory: of the whole process, the image included.\n\n"
        f"On {arguments.data.name} val, in tiles of {COMPARED.tile} with an overlap of {COMPARED.overlap}, {equal:.2%} "
        f"of the labels are those of the whole image, {single:.2%} where a pixel is in one tile alone.\n\n"
        f"![time and memory]({figure.name})",
        ["image", "seconds", "seconds a megapixel", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
