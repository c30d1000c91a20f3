"""Ours against the peers, all in the same engine and precision: uint8 pixels to uint8 labels, one image.

python benchmarks/peers.py [--size 512] [--rounds 7]
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.data.synthetic import make_scene
from exfuse.export.formats import openvino
from exfuse.export.trace import export_program
from exfuse.inference.engines.base import LABELS, Precision
from exfuse.inference.engines.openvino import OpenVINOEngine, read_openvino, save_openvino
from exfuse.models.folding import fold
from exfuse.models.registry import build_model, count_multiply_adds, count_parameters
from exfuse.predictor import Predictor
from harness import again, interleave, parse_arguments, peak_memory, report_memory, write
from subjects import CLASSES, OURS, info_of
from torchvision_operators import declare_torchvision_operators

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
REFERENCE = "smp DeepLabV3+ R101"
BACKBONE = "backbone"
GEMM_SIDE = 4096
GEMMS = 4  # one after the other, so that entering and leaving the graph counts for little


class Normalised(nn.Module):
    """A network with the beginning that ours have: uint8 images `(N, H, W, 3)`, normalised inside.

    Args:
        network: Of float images.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        info = info_of({})
        for name, values in (("shift", info.image_mean), ("scale", info.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def normalise(self, images: Tensor) -> Tensor:
        """Returns what the network takes."""
        return (images.permute(0, 3, 1, 2).float() - self.shift) / self.scale


class Peer(Normalised):
    """A peer's network, labels out; its scores are enlarged in the network's precision, ours in float32."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels images."""
        pixels = self.normalise(images)
        logits = self.network(pixels)
        logits = getattr(logits, "logits", logits)
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits.argmax(dim=1).to(torch.uint8), logits


class Backbone(Normalised):
    """Our ResNet-101 alone, with the means of its four features for a result."""

    def __init__(self) -> None:
        super().__init__(build_model(info_of({})).backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs images."""
        means = torch.stack([feature.mean() for feature in self.network(self.normalise(images))])
        return means, -means


def build_peer(name: str) -> nn.Module:
    """Returns a peer's network with random weights."""
    declare_torchvision_operators()
    import segmentation_models_pytorch as smp
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    plain = {"encoder_name": "resnet101", "encoder_weights": None, "classes": CLASSES}
    if name == "transformers SegFormer-B2":
        config = SegformerConfig(
            depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768, num_labels=CLASSES
        )
        return SegformerForSemanticSegmentation(config)
    kinds = {REFERENCE: smp.DeepLabV3Plus, "smp FPN R101": smp.FPN, "smp UPerNet R101": smp.UPerNet}
    return kinds[name](**plain)


PEERS = (REFERENCE, "smp FPN R101", "smp UPerNet R101", "transformers SegFormer-B2")


def convert(name: str, path: Path, size: int, batch: int = 1) -> tuple[int, int]:
    """Writes a network for OpenVINO, a peer's for this size and batch only.

    Returns:
        Its parameters and its multiply-adds for one image.
    """
    torch.manual_seed(0)
    if name in OURS:
        info = info_of(OURS[name])
        model = build_model(info).eval()
        openvino.write(export_program(model, info), info, path)
        return count_parameters(model), count_multiply_adds(fold(model), size, size)
    graph = Backbone() if name == BACKBONE else Peer(build_peer(name))
    example = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(graph.eval(), (example,), strict=False)
    save_openvino(openvino.convert(program), info_of({}), path)
    return count_parameters(graph.network), count_multiply_adds(graph.network, size, size)


def make_step(path: Path, precision: Precision, size: int, batch: int = 1) -> Callable[[], object]:
    """Returns a function that labels a batch of images."""
    engine = OpenVINOEngine(*read_openvino(path), precision)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return lambda: engine._run(LABELS, images)  # without the check of labels, which a bare backbone does not give


def make_whole_way(path: Path, precision: Precision, size: int) -> Callable[[], object]:
    """Returns a function that turns the bytes of a JPEG file into those of a PNG mask."""
    model, info = read_openvino(path)
    predictor = Predictor(OpenVINOEngine(model, info, precision), info)
    smooth = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(smooth).resize((size, size), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    scene = make_scene(0, size, size).mask  # what a random network says is speckle, which takes a PNG its time

    def run() -> None:
        prediction = predictor(Image.open(io.BytesIO(jpeg.getvalue())))
        replace(prediction, labels=scene).mask().save(io.BytesIO(), "PNG")

    return run


def gemm_rate(precision: Precision) -> float:
    """Returns multiply-adds a second of large matrix products in OpenVINO's own precision, the floor of all this."""
    side, make = GEMM_SIDE, ov.opset13
    left = make.parameter([side, side], ov.Type.f32)
    weights = [make.constant(np.full((side, side), 1 / side, np.float32)) for _ in range(GEMMS)]
    product = reduce(lambda y, weight: make.matmul(y, weight, False, False), weights, left)
    largest = make.reduce_max(product, make.constant([0, 1]), False)  # little is copied out
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = ov.Core().compile_model(ov.Model([largest], [left]), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    ones = np.ones((side, side), np.float32)
    timing = interleave({"gemm": lambda: compiled([ones])}, "gemm", 5)["gemm"]
    return GEMMS * side**3 / (timing.median_ms / 1000)


def main() -> None:
    """Measures everything in both precisions and writes the page."""
    arguments = parse_arguments(__doc__, ("PATH", "PRECISION", "SIZE"))
    if arguments.memory:
        path, precision, size = arguments.memory
        report_memory(make_step(Path(path), precision, int(size)))
        return
    size, rows, raw = arguments.size, [], []
    with tempfile.TemporaryDirectory() as temporary:
        names = (*PEERS, BACKBONE, *OURS)
        paths = {name: Path(temporary) / f"{index}.xml" for index, name in enumerate(names)}
        costs = {name: convert(name, path, size) for name, path in paths.items()}
        for precision in PRECISIONS:
            rate = gemm_rate(precision)
            memory = {name: peak_memory(__file__, path, precision, size) for name, path in paths.items()}
            timings = interleave(
                {name: make_step(path, precision, size) for name, path in paths.items()}, REFERENCE, arguments.rounds
            )
            for name, timing in timings.items():
                network = REFERENCE if name == again(REFERENCE) else name
                parameters, multiply_adds = costs[network]
                share = multiply_adds / rate / (timing.median_ms / 1000)
                cost = [f"{parameters / 1e6:.1f} M", f"{multiply_adds / 1e9:.1f} G"]
                ratios = [timing.ratio_text(), timing.against(timings[BACKBONE]).ratio_text()]
                figures = [f"{timing.median_ms:.0f}", *ratios, f"{share:.0%}", f"{memory[network]:.2f}"]
                rows.append([name, *cost, precision, *figures])
                facts = {"network": name, "precision": precision, "floor": share, "gib": memory[network]}
                raw.append(facts | timing.to_json())
            write_page(size, rows, raw)  # after each part: nothing is lost if the machine is not quiet later
            ways = {f"{name}, whole way": make_whole_way(paths[name], precision, size) for name in (REFERENCE, *OURS)}
            for name, timing in interleave(ways, f"{REFERENCE}, whole way", arguments.rounds).items():
                rows.append([name, "", "", precision, f"{timing.median_ms:.0f}", timing.ratio_text(), "", "", ""])
                raw.append({"network": name, "precision": precision} | timing.to_json())
            write_page(size, rows, raw)


def write_page(size: int, rows: list[list[str]], raw: list[dict[str, Any]]) -> None:
    """Writes what there is so far."""
    write(
        f"peers-{size}",
        f"Ours and the peers in OpenVINO, {size} x {size}",
        f"One image, {CLASSES} classes, random weights; the peers converted for this size alone, ours for "
        "any. Pixels to labels in one graph, and for the "
        f"whole way from a JPEG file's bytes to a PNG's, of the same scene for all. Ratios are to {REFERENCE} and to "
        "our bare ResNet-101 (the means of its features for a result), in the same precision, median of the rounds "
        "(least to greatest). Floor: the network's multiply-adds at the rate of large matrix products, as a share of "
        "the time.",
        [
            "network",
            "parameters",
            "multiply-adds",
            "precision",
            "median ms",
            "ratio",
            "to backbone",
            "floor",
            "peak GiB",
        ],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
