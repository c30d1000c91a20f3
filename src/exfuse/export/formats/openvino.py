"""OpenVINO's intermediate representation, for Intel and AMD processors."""

from pathlib import Path

from torch.export import ExportedProgram

from exfuse.contained import contained
from exfuse.export.openvino_passes.early_argmax import choose_early
from exfuse.export.openvino_passes.precision import interpolated_scores, keep_in_float32
from exfuse.export.trace import OUTPUTS, quiet
from exfuse.inference.engines.base import IMAGES
from exfuse.inference.engines.openvino import save_openvino
from exfuse.models.storage.metadata import ModelMetadata

with contained():
    import openvino as ov


def convert(program: ExportedProgram) -> ov.Model:
    """Converts a program to OpenVINO, with our names for its input and outputs."""
    with quiet():
        converted = ov.convert_model(program)
    converted.inputs[0].get_tensor().set_names({IMAGES})
    for output, name in zip(converted.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    return converted


def write(program: ExportedProgram, info: ModelMetadata, path: Path) -> None:
    """Writes an `.xml` file, and a `.bin` file with the weights next to it."""
    converted = convert(program)
    choose_early(converted, len(info.class_names))
    interpolated = interpolated_scores(converted)
    save_openvino(converted, info, path)
    keep_in_float32(path, interpolated)
