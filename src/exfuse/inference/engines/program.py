"""A program that torch.export wrote."""

import json
from pathlib import Path

import torch

from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError, brief
from exfuse.inference.augmentation import PLAIN
from exfuse.inference.engines.base import Float32Array, Precision
from exfuse.models.info import ModelInfo

INFO_FILE = "exfuse.json"  # of the description, among the program's extra files


class ProgramEngine:
    """Computes an exported `LabelGraph`; see `Engine`.

    Args:
        path: The `.pt2` file. Torch reads it without running what may be in it.

    Raises:
        CheckpointError: If it cannot be read or was not exported by us.
    """

    name = "torch"
    precision: Precision = "fp32"
    device = "cpu"
    augmentation = PLAIN

    def __init__(self, path: Path) -> None:
        files = {INFO_FILE: ""}
        try:
            self._graph = torch.export.load(path, extra_files=files).module()
            self.info = ModelInfo.from_json(json.loads(files[INFO_FILE]))
        except Exception as error:  # the archive's parts are read by several libraries, each with errors of its own
            raise CheckpointError(f"{path}: not a readable program of exfuse's ({brief(error)})") from error

    @torch.inference_mode()
    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        return self._graph(torch.from_numpy(images))[0].numpy()

    @torch.inference_mode()
    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine`."""
        return self._graph(torch.from_numpy(images))[1].numpy()
