"""Scores in float32 whatever the precision around them."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Computes a function in float32 at least, also under autocast: in bfloat16, neighbouring scores become equal."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not torch.amp.is_autocast_available(x.device.type):  # where nothing is computed, as on "meta"
        return function(x)
    with torch.autocast(x.device.type, enabled=False):
        return function(x)
