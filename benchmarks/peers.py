"""Ours against the peers, all in the same engine and precision: uint8 pixels to uint8 labels, one image.

python benchmarks/peers.py [--size 512] [--rounds 7]
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.data.samples import UInt8Array
from exfuse.inference.conversion import convert_openvino, export_program, write_openvino
from exfuse.inference.engines.base import Precision
from exfuse.inference.engines.openvino_engine import OpenVINOEngine, read_openvino, save_openvino
from exfuse.inference.predictor import Predictor
from exfuse.models.builders import count_multiply_adds, count_parameters
from exfuse.models.folding import fold
from harness import interleave, parse_arguments, peak_memory, report_memory, write
from subjects import CLASSES, OURS, info_of

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
REFERENCE = "smp DeepLabV3+ R101"
GEMM_SIDE = 4096


class Peer(nn.Module):
    """A peer's network with the same beginning and end as ours: normalised inside, labels out.

    Args:
        network: Float images to scores of any size.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        info = info_of({})
        for name, values in (("shift", info.image_mean), ("scale", info.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels uint8 images `(N, H, W, 3)`."""
        pixels = (images.permute(0, 3, 1, 2).float() - self.shift) / self.scale
        logits = self.network(pixels)
        logits = getattr(logits, "logits", logits)
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits.argmax(dim=1).to(torch.uint8), logits


class Backbone(nn.Module):
    """Our ResNet-101 alone, with the mean of its last features for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = info_of({}).build().backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs uint8 images `(N, H, W, 3)`."""
        features = self.backbone(images.permute(0, 3, 1, 2).float())
        means = torch.stack([feature.mean() for feature in features])
        return means, -means


@cache
def declare_torchvision_operators() -> torch.library.Library:
    """Declares what torchvision's wheel expects of its compiled part, which does not load beside a CPU torch.

    The declarations last as long as what is returned, which is kept.
    """
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


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
        model = info.build().eval()
        write_openvino(export_program(model, info), info, path)
        return count_parameters(model), count_multiply_adds(fold(model), size, size)
    graph = Backbone() if name == "backbone" else Peer(build_peer(name))
    example = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(graph.eval(), (example,), strict=False)
    save_openvino(convert_openvino(program), info_of({}), path)
    network = graph.backbone if isinstance(graph, Backbone) else graph.network
    return count_parameters(network), count_multiply_adds(network, size, size)


def make_step(path: Path, precision: Precision, size: int, batch: int = 1) -> Callable[[], object]:
    """Returns a function that labels a batch of images."""
    engine = OpenVINOEngine(read_openvino(path)[0], precision)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return lambda: engine.labels(images)


def make_whole_way(path: Path, precision: Precision, size: int) -> Callable[[], object]:
    """Returns a function that turns the bytes of a JPEG file into those of a PNG mask."""
    model, info = read_openvino(path)
    predictor = Predictor(OpenVINOEngine(model, precision), info)
    smooth = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(smooth).resize((size, size), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    scene = draw_scene(size)

    def run() -> None:
        prediction = predictor(Image.open(io.BytesIO(jpeg.getvalue())))
        replace(prediction, labels=scene).mask().save(io.BytesIO(), "PNG")

    return run


def draw_scene(size: int) -> UInt8Array:
    """Returns labels in patches: what a random network says is speckle, which takes a PNG its time."""
    patches = np.random.default_rng(1).integers(0, CLASSES, (size // 32, size // 32), dtype=np.uint8)
    return np.kron(patches, np.ones((32, 32), dtype=np.uint8))


def gemm_rate(precision: Precision) -> float:
    """Returns multiply-adds a second of a large matrix product in OpenVINO's own precision, the floor of all this."""
    side = GEMM_SIDE
    values = np.ones((side, side), np.float32)
    left = ov.opset13.parameter([side, side], ov.Type.f32)
    product = ov.opset13.matmul(left, ov.opset13.constant(values), False, False)
    largest = ov.opset13.reduce_max(product, ov.opset13.constant([0, 1]), False)  # little is copied out
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    compiled = ov.Core().compile_model(ov.Model([largest], [left]), "CPU", {"INFERENCE_PRECISION_HINT": hint})
    timing = interleave({"gemm": lambda: compiled([values])}, "gemm", 9)["gemm"]
    return side**3 / (timing.median_ms / 1000)


def main() -> None:
    """Measures everything in both precisions and writes the page."""
    arguments = parse_arguments(__doc__, ("PATH", "PRECISION", "SIZE"))
    if arguments.memory:
        path, precision, size = arguments.memory
        report_memory(make_step(Path(path), precision, int(size)))
        return
    size, rows, raw = arguments.size, [], []
    with tempfile.TemporaryDirectory() as temporary:
        names = (*PEERS, "backbone", *OURS)
        paths = {name: Path(temporary) / f"{index}.xml" for index, name in enumerate(names)}
        costs = {name: convert(name, path, size) for name, path in paths.items()}
        for precision in PRECISIONS:
            rate = gemm_rate(precision)
            steps = {name: make_step(path, precision, size) for name, path in paths.items()}
            ways = {f"{name}, whole way": make_whole_way(paths[name], precision, size) for name in (REFERENCE, *OURS)}
            timings = interleave(steps, REFERENCE, arguments.rounds)
            timings |= interleave(ways, f"{REFERENCE}, whole way", arguments.rounds)
            for name, timing in timings.items():
                network = name.removesuffix(", whole way")
                parameters, multiply_adds = costs[network]
                memory = peak_memory(__file__, paths[network], precision, size)
                share = multiply_adds / rate / (timing.median_ms / 1000)
                cost = [f"{parameters / 1e6:.1f} M", f"{multiply_adds / 1e9:.1f} G"]
                figures = [f"{timing.median_ms:.0f}", timing.ratio_text(), f"{share:.0%}", f"{memory:.2f}"]
                rows.append([name, *cost, precision, *figures])
                raw.append({"network": name, "precision": precision, "floor": share, "gib": memory, **asdict(timing)})
    write(
        f"peers-{size}",
        f"Ours and the peers in OpenVINO, {size} x {size}",
        f"One image, {CLASSES} classes, random weights; the peers as the library converts them, for this size alone. "
        "Pixels to labels in one graph, and for the whole way from a JPEG file's bytes to a PNG's, of the same scene "
        f"for all. Ratios are to {REFERENCE}, on the same way and in the same precision, median of the rounds (least "
        "to greatest). Floor: the network's multiply-adds at the rate of a large matrix product, as a share of the "
        "time.",
        ["network", "parameters", "multiply-adds", "precision", "median ms", "ratio", "floor", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
