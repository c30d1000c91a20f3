"""torch.export's own format, for C++ and for torch without exfuse.

No engine opens such a file, because torch may run code from it when loading it.
"""

import io
import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from exfuse.atomic_io import write_file
from exfuse.data.samples import UInt8Array
from exfuse.inference.engines.base import Float32Array
from exfuse.inference.tta import NO_TTA
from exfuse.models.storage.metadata import ModelMetadata

INFO_FILE = "exfuse.json"  # the metadata, among a program's extra files


def write(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes a `.pt2` file."""
    content = io.BytesIO()  # with a path that cannot be written, torch would end the process
    torch.export.save(program, content, extra_files={INFO_FILE: json.dumps(info.to_json())})
    write_file(path, content.getvalue())


class ProgramEngine:
    """Computes an exported `DeployableModel`; see `Engine`.

    Args:
        path: The `.pt2` file; it must be trusted.
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
