"""What comes after the network: scores enlarged, labels chosen, a PNG written; against the network itself.

python benchmarks/postprocessing.py [--size 512] [--rounds 7]
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov

from exfuse.data.synthetic import make_scene
from exfuse.inference.engines.openvino import HINTS, best_precision, read_openvino
from exfuse.predictor import Prediction
from harness import interleave, parse_arguments, write
from peers import convert
from subjects import CLASSES, OURS

SUBJECTS = tuple(OURS)


def make_steps(path: Path, size: int) -> dict[str, Callable[[], object]]:
    """Returns the network up to its scores, the same on to labels, and the writing of labels as a PNG.

    The scores are those at stride 4 where they are interpolated, and else those of full size.
    """
    model, info = read_openvino(path)
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    enlarged = [o.input_value(0) for o in model.get_ordered_ops() if o.get_type_name() == "Interpolate"]
    scores = enlarged[-1] if enlarged[-1].get_partial_shape()[1] == CLASSES else model.output("logits")
    options = {"INFERENCE_PRECISION_HINT": HINTS[best_precision()], "PERFORMANCE_HINT": "LATENCY"}
    ends = {"scores": scores, "labels": model.output("labels")}
    compiled = {
        name: ov.Core().compile_model(ov.Model([end], model.get_parameters()), "CPU", options)
        for name, end in ends.items()
    }
    prediction = Prediction(image[0], make_scene(0, size, size).mask, info)
    return {name: lambda network=network: network(image) for name, network in compiled.items()} | {
        "png": lambda: prediction.mask().save(io.BytesIO(), "PNG")
    }


def main() -> None:
    """Measures ours and writes the page."""
    arguments = parse_arguments(__doc__)
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for subject in SUBJECTS:
            path = Path(temporary) / "model.xml"
            convert(subject, path, arguments.size)
            timings = interleave(make_steps(path, arguments.size), "scores", arguments.rounds)
            network, labels, png = (timings[name].median_ms for name in ("scores", "labels", "png"))
            share = timings["labels"].ratio - 1 + timings["png"].ratio
            rows.append([subject, f"{network:.0f}", f"{labels - network:.1f}", f"{png:.1f}", f"{share:.1%}"])
            raw += [{"network": subject, "step": name, **timing.to_json()} for name, timing in timings.items()]
    write(
        f"postprocessing-{arguments.size}",
        f"After the network, {arguments.size} x {arguments.size}",
        f"OpenVINO {best_precision()}, {CLASSES} classes, one image. Network: pixels to scores, at stride 4 or of full "
        "size. Then they are enlarged if they are not, and labels chosen, in the same graph, and a drawn scene of "
        "labels is written as a PNG. Share: of both in the network's time.",
        ["network", "network ms", "labels ms", "PNG ms", "share"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
