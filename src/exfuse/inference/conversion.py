"""From a network to what the other engines compute: torch.export, ONNX, OpenVINO."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import Dim, ExportedProgram

from exfuse.atomic_io import write_file
from exfuse.contained import contained
from exfuse.inference.engines.base import IMAGES, LABELS, LOGITS
from exfuse.inference.graph import DeployableModel
from exfuse.models.exfuse import ExFuse
from exfuse.models.metadata import PAD_MULTIPLE, ModelMetadata

if TYPE_CHECKING:
    import openvino as ov

OPSET = 20
INFO_FILE = "exfuse.json"  # of the description, among a program's extra files
OUTPUTS = (LABELS, LOGITS)


def export_program(model: ExFuse, info: ModelMetadata) -> ExportedProgram:
    """Traces a model's `DeployableModel` for any number of images of any size."""
    return export_graph(DeployableModel(model, info))


def export_graph(graph: DeployableModel) -> ExportedProgram:
    """Traces a graph; see `export_program`."""
    graph.eval()
    # Nothing about the traced example may be special: no one, no multiple of the padding, no square.
    example = torch.zeros(2, 2 * PAD_MULTIPLE + 5, 3 * PAD_MULTIPLE + 11, 3, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    with quiet(), torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,), strict=False)


def write_program(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes a `.pt2` file."""
    content = io.BytesIO()  # given a file, torch ends the process where it cannot write
    torch.export.save(program, content, extra_files={INFO_FILE: json.dumps(info.to_json())})
    write_file(path, content.getvalue())


def write_onnx(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes an `.onnx` file."""
    import onnx

    from exfuse.inference.engines.onnxruntime_engine import INFO_KEY

    with quiet():
        converted = torch.onnx.export(
            program, input_names=[IMAGES], output_names=OUTPUTS, opset_version=OPSET, verbose=False
        )
    assert converted is not None  # noqa: S101 - it is so only where a file was asked for
    content = converted.model_proto
    onnx.helper.set_model_props(content, {INFO_KEY: json.dumps(info.to_json())})
    write_file(path, content.SerializeToString())


def convert_openvino(program: ExportedProgram) -> "ov.Model":
    """Returns a program as OpenVINO converts it, with our names for its input and outputs."""
    import openvino as ov

    with quiet():
        converted = ov.convert_model(program)
    converted.inputs[0].get_tensor().set_names({IMAGES})
    for output, name in zip(converted.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    return converted


def write_openvino(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes an `.xml` file, and a `.bin` file with the weights beside it."""
    from exfuse.inference.early_labels import choose_early
    from exfuse.inference.engines.openvino_engine import save_openvino
    from exfuse.inference.float32_scores import interpolated_scores, keep_in_float32

    converted = convert_openvino(program)
    choose_early(converted, len(info.class_names))
    interpolated = interpolated_scores(converted)
    save_openvino(converted, info, path)
    keep_in_float32(path, interpolated)


WRITE: dict[str, Callable[[ExportedProgram, ModelMetadata, Path], None]] = {
    ".pt2": write_program,
    ".onnx": write_onnx,
    ".xml": write_openvino,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what a converter prints and warns of along the way; its errors are raised; see `contained`."""
    exporter = logging.getLogger("torch.onnx")
    with contained(), redirect_stdout(io.StringIO()):
        level = exporter.level
        exporter.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            exporter.setLevel(level)
