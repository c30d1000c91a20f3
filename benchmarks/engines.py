"""What folding and the engines make of the same network: uint8 pixels to uint8 labels, one image.

python benchmarks/engines.py [--size 512] [--rounds 7]
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from exfuse.inference.conversion import export_graph, write_openvino
from exfuse.inference.engines.base import Engine
from exfuse.inference.engines.compiled import CompiledEngine
from exfuse.inference.engines.openvino_engine import OpenVINOEngine, read_openvino
from exfuse.inference.engines.torch_engine import TorchEngine
from exfuse.inference.graph import LabelGraph
from exfuse.inference.predictor import Predictor
from exfuse.models.folding import fold
from exfuse.models.pretrained import load_pretrained, save_pretrained
from harness import interleave, parse_arguments, report_memory, start_cold, write
from subjects import OURS, info_of

REFERENCE = "torch fp32"
UNFOLDED = "openvino unfolded bf16"
SUBJECTS = ("full wide", "full narrow", "stride4 narrow")  # the paper's own, and what the baseline's width leaves of it


def open_case(case: str, folder: Path) -> Engine:
    """Returns the engine that a case names, computing the model in a folder."""
    name, _, precision = case.rpartition(" ")
    if name in ("torch", "torch folded"):
        model, info = load_pretrained(folder)
        return TorchEngine(fold(model) if "folded" in name else model, info, precision=precision)  # type: ignore[arg-type]
    if name == "compile":
        return CompiledEngine(LabelGraph(*load_pretrained(folder)), precision)  # type: ignore[arg-type]
    if name == "openvino unfolded":
        graph = LabelGraph(*load_pretrained(folder))
        graph.model = load_pretrained(folder)[0]
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.xml"
            write_openvino(export_graph(graph), load_pretrained(folder)[1], path)
            return OpenVINOEngine(read_openvino(path)[0], precision)  # type: ignore[arg-type]
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


def main() -> None:
    """Measures all engines on some of our networks and writes the page."""
    arguments = parse_arguments(__doc__, ("CASE", "FOLDER", "SIZE"))
    if arguments.memory:
        case, folder, size = arguments.memory
        report_memory(make_step(case, Path(folder), int(size)))
        return
    size, rows, raw = arguments.size, [], []
    with tempfile.TemporaryDirectory() as temporary:
        for subject in SUBJECTS:
            parts = OURS[subject]
            folder = Path(temporary) / subject.replace(" ", "_")
            info = info_of(parts)
            save_pretrained(folder, info.build(), info.to_json(), "")
            steps, first = {}, {}
            for case in CASES:
                use_cache(folder, case)
                started = time.perf_counter()
                steps[case] = make_step(case, folder, size)
                steps[case]()
                first[case] = time.perf_counter() - started
            timings = interleave(steps, REFERENCE, arguments.rounds)
            pair = {name: steps[name] for name in (UNFOLDED, "openvino bf16")}
            timings["openvino bf16, against unfolded"] = interleave(pair, UNFOLDED, arguments.rounds)["openvino bf16"]
            for name, timing in timings.items():
                case = name.partition(",")[0]
                use_cache(folder, case)
                cold = start_cold(__file__, case, folder, size)
                faster = f"{1 / timing.ratio:.2f} ({1 / timing.ratio_max:.2f} to {1 / timing.ratio_min:.2f})"
                seconds = [f"{first[case]:.1f}", f"{cold['first_s']:.1f}"]
                rows.append([subject, name, f"{timing.median_ms:.0f}", faster, *seconds, f"{cold['gib']:.2f}"])
                raw.append({"network": subject, "engine": name, "converting_s": first[case], **cold, **asdict(timing)})
    write(
        f"engines-{size}",
        f"Engines, {size} x {size}, uint8 pixels to uint8 labels",
        "One image. Times faster: than eager torch in fp32, or than the unfolded network in the same engine, median of "
        "the rounds (least to greatest). First: from a model folder to the first result, conversion included where "
        "there is one. Cold: from the start of a process to its first result, with a filled cache. Peak memory: of "
        "that process, after the second result; the unfolded network, which nobody keeps, is converted there again.",
        ["network", "engine", "median ms", "times faster", "first s", "cold s", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
