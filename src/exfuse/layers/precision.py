"""Scores in float32, whatever the surrounding precision."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Computes `function(x)` in at least float32, even under autocast: bfloat16 would round close scores to ties."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    device_type = x.device.type
    # Autocast is disabled only where it is enabled: torch.export writes a disabled region around a single convolution
    # in a form that it cannot load.
    if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
        return function(x)
    with torch.autocast(device_type, enabled=False):
        return function(x)
