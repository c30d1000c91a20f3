"""Makes torchvision, and with it timm, importable in the benchmarks' environment."""

from functools import cache

import torch


@cache
def declare_torchvision_operators() -> torch.library.Library:
    """Declares what torchvision's wheel expects of its compiled part, which does not load beside a CPU torch.

    The declarations last as long as what is returned, which is kept.
    """
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
