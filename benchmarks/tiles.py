"""Large images in tiles: time and peak memory against the number of pixels.

python benchmarks/tiles.py MODEL [--tile 1024] [--overlap 192]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from exfuse.inference.large import predict_large
from exfuse.inference.predictor import Predictor
from exfuse.inference.tiles import Tiling
from harness import peak_gib, write

SIDES = (2000, 4000, 6000, 8000, 10_000)


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


def main() -> None:
    """Measures all sizes, each in a process of its own, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
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
        command = [sys.executable, __file__, arguments.model, "--side", side, "--tile", tiling.tile]
        command += ["--overlap", tiling.overlap]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        megapixels = side * side / 1e6
        of_megapixel = result["seconds"] / megapixels
        rows.append([f"{side:,} x {side:,}", f"{result['seconds']:.1f}", f"{of_megapixel:.2f}", f"{result['gib']:.2f}"])
        raw.append({"side": side, **result})
    write(
        "tiles",
        "Large images in tiles",
        f"Tiles of {tiling.tile} pixels with an overlap of {tiling.overlap}; from pixels in memory to a PNG on "
        "the disk. Peak memory: of the whole process, the image included.",
        ["image", "seconds", "seconds a megapixel", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
