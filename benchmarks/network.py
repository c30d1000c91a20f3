"""What the decoder and the paper's parts cost beside their own backbone, in one interleaved run.

    python benchmarks/network.py [--size 512] [--rounds 7] [--output benchmarks/results]

Each case runs once a round, in turn, so that a machine whose speed drifts slows all of them alike; ratios are taken
round by round and their median, least and greatest are reported. Peak memory is that of a process of its own for each
case.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exfuse.losses import cross_entropy
from exfuse.models.builders import count_multiply_adds, count_parameters, create_model

CLASSES = 21
NETWORKS = ("backbone", "gcn_resnet50", "exfuse_resnet50", "exfuse_resnet50 stride4")
PRECISIONS = ("fp32", "bf16")
TRAIN_BATCH = 2


def build(network: str) -> nn.Module:
    """Returns a network by its name in `NETWORKS`; "backbone" is the ResNet-50 both models stand on."""
    name, _, decoder = network.partition(" ")
    if name == "backbone":
        return create_model("gcn_resnet50", num_classes=CLASSES).backbone  # type: ignore[return-value]
    return create_model(name, num_classes=CLASSES, decoder=decoder or "full")  # type: ignore[arg-type]


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


def training_loss(output: object, target: Tensor) -> Tensor:
    """Cross-entropy for a segmentation output; for a bare backbone the mean of its features, which costs nothing."""
    if isinstance(output, tuple) and not hasattr(output, "logits"):
        return torch.stack([feature.float().mean() for feature in output]).sum()
    return cross_entropy(output.logits, target, ignore_index=255)  # type: ignore[attr-defined]


def peak_memory(network: str, mode: str, precision: str, size: int) -> float:
    """Returns the peak resident memory in GiB of a process that runs a case twice."""
    code = [sys.executable, __file__, "--measure-memory", network, mode, precision, "--size", str(size)]
    return float(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def measure(mode: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Times all networks and precisions in one mode, interleaved."""
    cases = [(network, precision) for precision in PRECISIONS for network in NETWORKS]
    steps = {case: make_step(case[0], mode, case[1], size) for case in cases}
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for case in cases:
            started = time.perf_counter()
            steps[case]()
            seconds[case].append(time.perf_counter() - started)
    rows: list[dict[str, Any]] = []
    for network, precision in cases:
        own = seconds[network, precision]
        ratios = [a / b for a, b in zip(own, seconds["backbone", precision], strict=True)]
        rows.append(
            {
                "network": network,
                "mode": mode,
                "precision": precision,
                "median_ms": 1000 * statistics.median(own),
                "ratio_to_backbone": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "peak_gib": peak_memory(network, mode, precision, size),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Returns the results as a Markdown page."""
    size = environment["size"]
    lines = [
        f"# Networks against their backbone, {size} x {size}",
        "",
        f"`python benchmarks/network.py --size {size} --rounds {environment['rounds']}`, {environment['date']}",
        "",
        f"{environment['processor']}, {environment['threads']} threads, torch {environment['torch']}, channels_last. "
        f"Forward: batch 1. Training step: batch {TRAIN_BATCH}, AdamW. Ratios are to the bare ResNet-50 in the same "
        "round: median (least to greatest).",
        "",
        "| network | parameters | multiply-adds | mode | precision | median ms | ratio | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parameters, multiply_adds = environment["sizes"][row["network"]]
        ratio = f"{row['ratio_to_backbone']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        lines.append(
            f"| {row['network']} | {parameters / 1e6:.1f} M | {multiply_adds / 1e9:.1f} G | {row['mode']} "
            f"| {row['precision']} | {row['median_ms']:.0f} | {ratio} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    """Returns the processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    """Runs everything and writes a dated Markdown page and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure-memory", nargs=3, metavar=("NETWORK", "MODE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        step = make_step(*arguments.measure_memory, arguments.size)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    now = datetime.now(UTC)
    sizes = {}
    for network in NETWORKS:
        with torch.device("meta"):
            model = build(network)
        sizes[network] = (count_parameters(model), count_multiply_adds(model, arguments.size, arguments.size))
    environment: dict[str, Any] = {
        "date": f"{now:%Y-%m-%d}",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": arguments.size,
        "rounds": arguments.rounds,
        "sizes": sizes,
    }
    rows = [row for mode in ("forward", "train") for row in measure(mode, arguments.size, arguments.rounds)]
    page = markdown(rows, environment)
    arguments.output.mkdir(parents=True, exist_ok=True)
    target = arguments.output / f"{now:%Y-%m-%d}-network-{arguments.size}"
    target.with_suffix(".md").write_text(page)
    target.with_suffix(".json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    print(page)


if __name__ == "__main__":
    main()
