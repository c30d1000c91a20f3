"""ONNX, for ONNX Runtime and most other runtimes."""

import json
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from exfuse.atomic_io import write_file
from exfuse.export.trace import OUTPUTS, quiet
from exfuse.inference.engines.base import IMAGES
from exfuse.inference.engines.onnxruntime import INFO_KEY
from exfuse.models.storage.metadata import ModelMetadata

OPSET = 20


def write(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes an `.onnx` file."""
    with quiet():
        exported = torch.onnx.export(
            program, input_names=[IMAGES], output_names=OUTPUTS, opset_version=OPSET, verbose=False
        )
    assert exported is not None  # noqa: S101 - None only if a path is passed
    content = exported.model_proto
    onnx.helper.set_model_props(content, {INFO_KEY: json.dumps(info.to_json())})
    write_file(path, content.SerializeToString())
