"""`exfuse predict` on large images: time and peak memory against pixels, and how labels differ from the whole's.

python benchmarks/tiles.py MODEL DATA [--tile 1024] [--overlap 192]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from exfuse.data.datasets import open_dataset
from exfuse.inference.tiling import Tiling, label_strips, tile_spans
from exfuse.predictor import Predictor
from harness import peak_gib, place_of, write

SIDES = (2000, 4000, 6000, 8000, 10_000)
REPEATS = 2
COMPARED = Tiling(256, 96)  # on images of a few hundred pixels a side, so that there is a whole to compare with


def segment(model: Path, side: int, tiling: Tiling) -> dict[str, float]:
    """Runs the command on the file of a square image; returns its seconds, start included, and its peak memory."""
    small = np.random.default_rng(0).integers(0, 256, (side // 50, side // 50, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(small, 50, axis=0), 50, axis=1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "image.png"
        Image.fromarray(image).save(source, compress_level=1)
        del image
        command = [Path(sys.executable).with_name("exfuse"), "predict", model, source, "-o", Path(folder) / "out"]
        command += [
            "--tile",
            tiling.tile_size,
            "--overlap",
            tiling.overlap,
            "--max-megapixels",
            side * side // 10**6 + 1,
        ]
        started = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        seconds = time.perf_counter() - started
    gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    if gib <= peak_gib():
        raise RuntimeError("a child's count begins with this process's peak, which it has not passed")
    return {"seconds": seconds, "gib": gib}


def agreement(model: Path, data: Path) -> tuple[float, float]:
    """Returns which share of labels is that of the whole image: of all, and of those that one tile alone has."""
    engine, dataset = Predictor.from_pretrained(model).engine, open_dataset(data, "val")
    equal, single = [], []
    for index in range(len(dataset)):
        image = dataset[index].image
        same = np.concatenate(list(label_strips(engine, image, COMPARED))) == engine.labels(image[None])[0]
        alone = [np.zeros(side, dtype=np.int64) for side in same.shape]
        for tiles, side in zip(alone, same.shape, strict=True):
            for start, end in tile_spans(side, COMPARED):
                tiles[start:end] += 1
        equal.append(same.mean())
        single.append(same[alone[0] == 1][:, alone[1] == 1].mean())
    return float(np.mean(equal)), float(np.mean(single))


def line_through(results: list[dict[str, float]]) -> tuple[float, float, float]:
    """Returns seconds a megapixel, seconds at none, and by how much the largest residue is off, as a share."""
    megapixels, seconds = (np.array([result[key] for result in results]) for key in ("megapixels", "seconds"))
    slope, start = np.polyfit(megapixels, seconds, 1)
    return float(slope), float(start), float(np.abs(seconds / (slope * megapixels + start) - 1).max())


def draw(path: Path, results: list[dict[str, float]]) -> None:
    """Draws seconds and memory against megapixels."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    megapixels = [result["megapixels"] for result in results]
    for axes, key, label in zip(figure.subplots(1, 2), ("seconds", "gib"), ("seconds", "peak GiB"), strict=True):
        axes.plot(megapixels, [result[key] for result in results], "o")
        axes.set(xlabel="megapixels", ylabel=label, xlim=(0, None), ylim=(0, None))
    slope, start, _ = line_through(results)
    figure.axes[0].axline((0, start), slope=slope, linewidth=1)
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
    for side in SIDES * REPEATS:
        command = [
            sys.executable,
            __file__,
            arguments.model,
            arguments.data,
            "--side",
            side,
            "--tile",
            tiling.tile_size,
        ]
        command += ["--overlap", tiling.overlap]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        raw.append({"side": side, "megapixels": side * side / 1e6, **json.loads(done.stdout.splitlines()[-1])})
    for side in SIDES:
        runs = [result for result in raw if result["side"] == side]
        seconds, gib = ([run[key] for run in runs] for key in ("seconds", "gib"))
        of_megapixel = [f"{value / runs[0]['megapixels']:.2f}" for value in seconds]
        times = " and ".join(f"{value:.1f}" for value in seconds)
        rows.append([f"{side:,} x {side:,}", times, " and ".join(of_megapixel), f"{max(gib):.2f}"])
    slope, start, off = line_through(raw)
    equal, single = agreement(arguments.model, arguments.data)
    figure = place_of("tiles", ".png")
    draw(figure, raw)
    write(
        "tiles",
        "Large images in tiles",
        f"`exfuse predict` from a PNG file to a mask and an overlay, tiles of {tiling.tile_size} pixels with an "
        f"overlap of {tiling.overlap}, the start of the process included, {REPEATS} runs. Peak memory: "
        f"of the whole process. A "
        f"straight line, {slope:.2f} s a megapixel and {start:.1f} s, is nowhere off by more than {off:.0%}.\n\n"
        f"On {arguments.data.name} val, in tiles of {COMPARED.tile_size} with an overlap of {COMPARED.overlap}, "
        f"{equal:.2%} of the labels are those of the whole image, {single:.2%} where a pixel is in one tile alone.\n\n"
        f"![time and memory]({figure.name})",
        ["image", "seconds", "seconds a megapixel", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
