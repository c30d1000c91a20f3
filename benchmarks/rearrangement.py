"""What layer rearrangement costs: ResNeXt-101 with {3, 4, 23, 3} blocks against {8, 8, 9, 8}, and ResNet-34 likewise.

python benchmarks/rearrangement.py [--size 512] [--rounds 7]
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from exfuse.models.backbones import BACKBONES
from exfuse.models.registry import count_multiply_adds, count_parameters
from harness import again, interleave, parse_arguments, peak_memory, report_memory, write

PAIRS = (("resnext101", "resnext101_rearranged"), ("resnet34", "resnet34_rearranged"))


def make_forward(name: str, size: int) -> Callable[[], None]:
    """Returns a function that runs one forward pass of one image in fp32."""
    torch.manual_seed(0)
    model = BACKBONES[name]().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            model(image)

    return forward


def make_training_step(name: str, size: int) -> Callable[[], None]:
    """Returns a function that runs one image forward and backward in fp32."""
    torch.manual_seed(0)
    model = BACKBONES[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        torch.stack([feature.mean() for feature in model(image)]).sum().backward()
        model.zero_grad()

    return step


def saved_activations(model: nn.Module, size: int) -> int:
    """Returns the bytes that autograd keeps for the backward pass of one image, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = model(torch.randn(1, 3, size, size))
    total = sum(kept.values())
    del features
    return total


def main() -> None:
    """Measures each pair and writes the page."""
    arguments = parse_arguments(__doc__, ("NAME", "SIZE"))
    if arguments.memory:
        report_memory(make_training_step(arguments.memory[0], int(arguments.memory[1])))
        return
    size, rows, raw = arguments.size, [], []
    for pair in PAIRS:
        forward = interleave({name: make_forward(name, size) for name in pair}, pair[0], arguments.rounds)
        train = interleave({name: make_training_step(name, size) for name in pair}, pair[0], arguments.rounds)
        for name, backbone in ((pair[0], pair[0]), (pair[1], pair[1]), (again(pair[0]), pair[0])):
            model = BACKBONES[backbone]()
            parameters, multiply_adds = count_parameters(model), count_multiply_adds(model, size, size)
            activations, memory = saved_activations(model, size), peak_memory(__file__, backbone, size)
            rows.append(
                [
                    name,
                    f"{parameters / 1e6:.2f} M",
                    f"{multiply_adds / 1e9:.2f} G",
                    f"{forward[name].median_ms:.0f}",
                    forward[name].ratio_text(),
                    f"{train[name].median_ms:.0f}",
                    train[name].ratio_text(),
                    f"{activations / 2**20:.0f}",
                    f"{memory:.2f}",
                ]
            )
            raw.append(
                {
                    "name": name,
                    "parameters": parameters,
                    "multiply_adds": multiply_adds,
                    "forward": forward[name].to_json(),
                    "train": train[name].to_json(),
                    "activation_bytes": activations,
                    "peak_gib": memory,
                }
            )
    write(
        f"rearrangement-{size}",
        f"Layer rearrangement, {size} x {size}",
        "fp32, channels_last, one image; forward, and forward with backward. Ratios are to the backbone as published. "
        "Activations: what autograd keeps for the backward pass. Peak memory: of a process that takes two such steps.",
        [
            "backbone",
            "parameters",
            "multiply-adds",
            "forward ms",
            "ratio",
            "step ms",
            "ratio",
            "activations MiB",
            "peak GiB",
        ],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
