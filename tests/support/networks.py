"""Networks for tests."""

import itertools

import torch
from torch import nn


def unsettle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every weight, bias and statistic a random value, so that nothing is right by being zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
                tensor.add_(0.2 * (noise - 0.4) * tensor.abs().mean().clamp(min=0.1))
    return model
