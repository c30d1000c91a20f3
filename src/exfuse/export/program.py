"""A program that torch.export wrote, for comparing it; torch reads such a file by means that can run what is in it."""

from pathlib import Path

import torch

from exfuse.data.samples import UInt8Array
from exfuse.inference.engines.base import Float32Array
from exfuse.inference.tta import NO_TTA


class ProgramEngine:
    """Computes an exported `DeployableModel`; see `Engine`.

    Args:
        path: The `.pt2` file; only one that you trust.
    """

    name = "torch"
    precision: str = "fp32"
    device = "cpu"
    augmentation = NO_TTA

    def __init__(self, path: Path) -> None:
        self._graph = torch.export.load(path).module()

    @torch.inference_mode()
    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        labels: UInt8Array = self._graph(torch.from_numpy(images))[0].numpy()
        return labels

    @torch.inference_mode()
    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine`."""
        scores: Float32Array = self._graph(torch.from_numpy(images))[1].numpy()
        return scores
