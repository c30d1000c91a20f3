"""From a network to what the other engines compute: torch.export, ONNX, OpenVINO."""

import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from exfuse.inference.graph import INPUT, OUTPUTS, LabelGraph
from exfuse.models.exfuse import PAD_MULTIPLE, ExFuse
from exfuse.models.info import ModelInfo

OPSET = 20


def export_program(model: ExFuse, info: ModelInfo) -> ExportedProgram:
    """Traces a model's `LabelGraph` for any number of images of any size."""
    graph = LabelGraph(model, info).eval()
    # Nothing about the traced example may be special: no one, no multiple of the padding, no square.
    example = torch.zeros(2, 2 * PAD_MULTIPLE + 5, 3 * PAD_MULTIPLE + 11, 3, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,), strict=False)


def write_program(model: ExFuse, info: ModelInfo, path: Path) -> None:
    """Writes a `.pt2` file."""
    from exfuse.inference.engines.program import INFO_FILE

    torch.export.save(export_program(model, info), path, extra_files={INFO_FILE: json.dumps(info.to_json())})


def write_onnx(model: ExFuse, info: ModelInfo, path: Path) -> None:
    """Writes an `.onnx` file."""
    import onnx

    from exfuse.inference.engines.onnxruntime_engine import INFO_KEY

    with _quiet():
        converted = torch.onnx.export(
            export_program(model, info), input_names=[INPUT], output_names=OUTPUTS, opset_version=OPSET, verbose=False
        )
    content = converted.model_proto
    onnx.helper.set_model_props(content, {INFO_KEY: json.dumps(info.to_json())})
    onnx.save(content, path)


def write_openvino(model: ExFuse, info: ModelInfo, path: Path) -> None:
    """Writes an `.xml` file, and a `.bin` file with the weights beside it."""
    import openvino as ov

    from exfuse.inference.engines.openvino_engine import INFO_PATH

    converted = ov.convert_model(export_program(model, info))
    converted.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(converted.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    converted.set_rt_info(json.dumps(info.to_json()), INFO_PATH)
    ov.save_model(converted, path, compress_to_fp16=False)


WRITE: dict[str, Callable[[ExFuse, ModelInfo, Path], None]] = {
    ".pt2": write_program,
    ".onnx": write_onnx,
    ".xml": write_openvino,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what the exporter prints and warns of along the way; its errors are raised."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
