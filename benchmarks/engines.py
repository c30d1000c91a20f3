"""What folding and the engines make of the same network: uint8 pixels to uint8 labels, one image.

python benchmarks/engines.py [--size 512] [--rounds 7]
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exfuse.export.formats import openvino
from exfuse.export.trace import export_graph
from exfuse.inference.engines.base import Engine
from exfuse.inference.engines.openvino import OpenVINOEngine, read_openvino
from exfuse.inference.engines.torch_compile import CompiledEngine
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.models.deployable import DeployableModel
from exfuse.models.folding import fold
from exfuse.models.registry import build_model
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from exfuse.predictor import Predictor
from harness import again, interleave, parse_arguments, write
from subjects import OURS, info_of

REFERENCE = "torch fp32"
UNFOLDED = "openvino unfolded bf16"
# The paper's own, and what the baseline's width and a quarter of the size leave of it.
SUBJECTS = ("full wide", "full narrow", "stride4 wide", "stride4 narrow")


def open_case(case: str, folder: Path) -> Engine:
    """Returns the engine that a case names, computing the model in a folder."""
    name, _, precision = case.rpartition(" ")
    if name in ("torch", "torch folded"):
        model, info = load_pretrained(folder)
        return TorchEngine(fold(model) if "folded" in name else model, info, precision=precision)  # type: ignore[arg-type]
    if name == "compile":
        return CompiledEngine(DeployableModel(*load_pretrained(folder)), precision)  # type: ignore[arg-type]
    if name == "openvino unfolded":
        graph = DeployableModel(*load_pretrained(folder))
        graph.model = load_pretrained(folder)[0]
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.xml"
            openvino.write(export_graph(graph), load_pretrained(folder)[1], path)
            return OpenVINOEngine(*read_openvino(path), precision)  # type: ignore[arg-type]
    return Predictor.from_pretrained(folder, name, precision).engine  # type: ignore[arg-type]


CASES = (
    REFERENCE,
    "torch bf16",
    "torch folded fp32",
    "torch folded bf16",
    "compile bf16",
    "onnxruntime fp32",
    UNFOLDED,
    "openvino fp32",
    "openvino bf16",
)


def use_cache(folder: Path, case: str) -> None:
    """Gives each case a cache of its own for a model, filled by the first that opens it."""
    os.environ["EXFUSE_CACHE"] = f"{folder}.{case.replace(' ', '_')}.cache"


def make_step(case: str, folder: Path, size: int) -> Callable[[], object]:
    """Returns a function that labels one image."""
    engine = open_case(case, folder)
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    return lambda: engine.labels(image)


def start_cold(case: str, folder: Path, size: int) -> tuple[float, float] | None:
    """Returns seconds to a first result and peak GiB of a process of its own; None for what users cannot ask for."""
    name, _, precision = case.rpartition(" ")
    if name in ("torch folded", "openvino unfolded"):
        return None
    program = Path(__file__).with_name("first_result.py")
    command = [sys.executable, program, time.time(), folder, name, precision, size]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    seconds, gib = map(float, done.stdout.split()[-2:])
    return seconds, gib


def main() -> None:
    """Measures all engines on some of our networks and writes the page."""
    arguments = parse_arguments(__doc__)
    size, rows, raw = arguments.size, [], []
    with tempfile.TemporaryDirectory() as temporary:
        for subject in SUBJECTS:
            parts = OURS[subject]
            folder = Path(temporary) / subject.replace(" ", "_")
            info = info_of(parts)
            save_pretrained(folder, build_model(info), info.to_json(), "")
            steps, first = {}, {}
            for case in CASES:
                use_cache(folder, case)
                started = time.perf_counter()
                steps[case] = make_step(case, folder, size)
                steps[case]()
                first[case] = time.perf_counter() - started
            timings = interleave(steps, REFERENCE, arguments.rounds)
            colds = {}
            for case in CASES:
                use_cache(folder, case)
                colds[case] = start_cold(case, folder, size)
            for name, timing in timings.items():
                case = REFERENCE if name == again(REFERENCE) else name
                cold = colds[case]
                others = ["-", "-"] if cold is None else [f"{cold[0]:.1f}", f"{cold[1]:.2f}"]
                unfolded = timing.against(timings[UNFOLDED]).speed_text() if name == "openvino bf16" else ""
                figures = [f"{timing.median_ms:.0f}", timing.speed_text(), unfolded, f"{first[case]:.1f}", *others]
                rows.append([subject, name, *figures])
                raw.append(
                    {"network": subject, "engine": name, "first_s": first[case], "cold": cold, **timing.to_json()}
                )
            write_page(size, rows, raw)  # after each network: nothing is lost if the machine is not quiet later


def write_page(size: int, rows: list[list[str]], raw: list[dict[str, Any]]) -> None:
    """Writes what there is so far."""
    write(
        f"engines-{size}",
        f"Engines, {size} x {size}, uint8 pixels to uint8 labels",
        "One image. Times faster: than eager torch in fp32, and than the unfolded network in the same engine and "
        "precision, median of the rounds (least to greatest). First: from a model folder to the first result, "
        "conversion included where there is one. Cold, and peak memory: of a process that opens the model with "
        "`Predictor`, from its start to the first result, the cache filled; none for what users cannot ask for.",
        ["network", "engine", "median ms", "times faster", "than unfolded", "first s", "cold s", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
