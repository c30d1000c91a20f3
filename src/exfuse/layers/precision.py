"""Scores in float32 whatever the precision around them."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Computes a function in float32 at least, also under autocast: in bfloat16, neighbouring scores become equal."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    kind = x.device.type
    # Without need no region is begun: torch.export writes one of a single convolution so that it cannot be read again.
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return function(x)
    with torch.autocast(kind, enabled=False):
        return function(x)
