"""What the decoder and the paper's parts cost beside their own backbone.

python benchmarks/network.py [--size 512] [--rounds 7]
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exfuse.losses import SegmentationLoss
from exfuse.models.registry import count_multiply_adds, count_parameters, create_model
from harness import Timing, again, interleave, parse_arguments, peak_memory, report_memory, write

CLASSES = 21
NETWORKS = ("backbone", "gcn_resnet50", "gcn_resnet50 stride4", "exfuse_resnet50", "exfuse_resnet50 stride4")
PRECISIONS = ("fp32", "bf16")
TRAIN_BATCH = 2
LOSS = SegmentationLoss(255, None, ohem=False, terms={}, auxiliary=0.4)


def build(network: str) -> nn.Module:
    """Returns a network by its name in `NETWORKS`; "backbone" is the ResNet-50 all of them stand on."""
    name, _, decoder = network.partition(" ")
    if name == "backbone":
        return create_model("gcn_resnet50", num_classes=CLASSES).get_submodule("backbone")
    # Wide, as on the pages so far; without densely adjacent prediction, as in GCN, that is K channels.
    return create_model(name, num_classes=CLASSES, decoder=decoder or "full", decoder_width="wide")


def make_step(network: str, mode: str, precision: str, size: int) -> Callable[[], None]:
    """Returns a function that runs one forward pass of one image, or one training step of a small batch."""
    torch.manual_seed(0)
    model = build(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    images = torch.randn(1 if mode == "forward" else TRAIN_BATCH, 3, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    if mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode(), autocast:
                model(images)

        return forward

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    target = torch.randint(0, CLASSES, (TRAIN_BATCH, size, size))

    def step() -> None:
        with autocast:
            output = model(images)
        training_loss(output, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_loss(output: Any, target: Tensor) -> Tensor:
    """The recipes' loss of a segmentation output; of a bare backbone the mean of its features, which costs nothing."""
    if not hasattr(output, "logits"):
        return torch.stack([feature.float().mean() for feature in output]).sum()
    return LOSS(output.logits, output.auxiliary_logits, target)


def main() -> None:
    """Measures both modes in both precisions and writes the page."""
    arguments = parse_arguments(__doc__, ("NETWORK", "MODE", "PRECISION", "SIZE"))
    if arguments.memory:
        network, mode, precision, size = arguments.memory
        report_memory(make_step(network, mode, precision, int(size)))
        return
    size = arguments.size
    sizes = {}
    for network in NETWORKS:
        with torch.device("meta"):
            model = build(network)
        sizes[network] = (count_parameters(model), count_multiply_adds(model, size, size))
    rows, raw = [], []
    for mode in ("forward", "train"):
        for precision in PRECISIONS:
            steps = {network: make_step(network, mode, precision, size) for network in NETWORKS}
            timings: dict[str, Timing] = interleave(steps, "backbone", arguments.rounds)
            for name, timing in timings.items():
                network = "backbone" if name == again("backbone") else name
                memory = peak_memory(__file__, network, mode, precision, size)
                parameters, multiply_adds = sizes[network]
                costs = [f"{parameters / 1e6:.1f} M", f"{multiply_adds / 1e9:.1f} G"]
                speed = [f"{timing.median_ms:.0f}", timing.ratio_text(), f"{memory:.2f}"]
                rows.append([name, *costs, mode, precision, *speed])
                raw.append({"network": name, "mode": mode, "precision": precision, "gib": memory, **timing.to_json()})
    write(
        f"network-{size}",
        f"Networks against their backbone, {size} x {size}",
        f"channels_last. Forward: one image. Training step: {TRAIN_BATCH} images, AdamW. Ratios are to the bare "
        "ResNet-50 of the same mode and precision, median of the rounds (least to greatest).",
        ["network", "parameters", "multiply-adds", "mode", "precision", "median ms", "ratio", "peak GiB"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
