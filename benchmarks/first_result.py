"""From a cold process to a first label map; prints seconds to it and peak memory in GiB. Imports what users do.

python benchmarks/first_result.py STARTED MODEL ENGINE PRECISION SIZE
"""

import sys
import time
from pathlib import Path

import numpy as np

from exfuse.predictor import Predictor


def main() -> None:
    """Opens a model and labels one image; `STARTED` is when the process was begun, in seconds of the clock."""
    started, model, engine, precision, size = sys.argv[1:]
    predictor = Predictor.from_pretrained(model, engine, precision)  # type: ignore[arg-type]
    predictor(np.zeros((int(size), int(size), 3), dtype=np.uint8))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(time.time() - float(started), int(peak.split()[1]) / 2**20)


if __name__ == "__main__":
    main()
