"""Writing a model for another runtime, checked before it gets its name."""

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from exfuse.atomic_io import atomic_folder, describe_os_error, digest_of, write_file
from exfuse.data.samples import Sample
from exfuse.errors import ConfigError, ExFuseError, ExportError, OutputError, brief
from exfuse.export.program import ProgramEngine
from exfuse.export.verify import ParityReport, compare_engines
from exfuse.inference.conversion import WRITE, export_program
from exfuse.inference.converted import MAIN_FILE
from exfuse.inference.engines.base import IMAGES, Engine
from exfuse.inference.engines.torch_engine import TorchEngine
from exfuse.inference.opening import EXPORTED, WRITTEN_WITH, open_exported, require
from exfuse.manifest import write_manifest
from exfuse.models.metadata import PAD_MULTIPLE, ModelMetadata
from exfuse.models.pretrained import load_pretrained
from exfuse.outputs.folder import is_replaceable
from exfuse.outputs.place import check_writable

ExportFormat = Literal["torch-export", "onnx", "openvino"]
ExportPrecision = Literal["fp32", "int8"]

SUFFIXES: dict[ExportFormat, str] = {"torch-export": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
REPORT_FILE = "export.json"


def export_model(
    source: str | Path,
    output: Path,
    export_format: ExportFormat,
    precision: ExportPrecision,
    samples: Sequence[Sample],
) -> dict[str, ParityReport]:
    """Writes a folder with the exported model, its description and how well it agrees with the network.

    It is written beside its place, opened with the engine that computes it, and compared with the network on images;
    only then does the folder get its name, and whatever fails leaves nothing. It is compared in fp32, which shows that
    the file holds the same function, and in the precision that the engine takes by itself on this machine.

    Args:
        source: A model folder, or "hf://OWNER/NAME" on the Hugging Face hub.
        output: The folder to write; what is there is replaced if it is an older export and nothing else.
        export_format: One of `SUFFIXES`.
        precision: "fp32", or "int8" for OpenVINO, calibrated on the images.
        samples: Real images to check with, labelled ones if there are any; see `compare_engines`.

    Returns:
        The agreement in each precision that was compared.

    Raises:
        CheckpointError: If the model cannot be read.
        ConfigError: If something that the format needs is not installed.
        OutputError: If `output` is something else than an export, or cannot be written.
        ExportError: If the export cannot be made or written, or differs from the network by more than `TOLERANCES`.
    """
    check_request(output, export_format, precision)
    suffix = SUFFIXES[export_format]
    if export_format == "torch-export":  # which takes no smaller ones
        samples = [sample for sample in samples if min(sample.mask.shape) > PAD_MULTIPLE]
    model, info = load_pretrained(source)
    network = TorchEngine(model, info, device=torch.device("cpu"))  # a card's convolutions may round more
    try:
        with atomic_folder(output.resolve(), lambda older: is_replaceable(older, REPORT_FILE)) as staged:
            path = staged / f"{MAIN_FILE}{suffix}"
            WRITE[suffix](export_program(model, info), info, path)
            if precision == "int8":
                from exfuse.export.quantize import quantize

                quantize(path, network, samples, info)
            agreements = {}
            for export in _opened(path, precision):
                agreements[export.precision] = compare_engines(network, export, samples, info)
                agreements[export.precision].check(export.precision)
            description = _describe(info, export_format, precision, agreements)
            write_file(staged / REPORT_FILE, (json.dumps(description, indent=2) + "\n").encode())
            write_manifest(staged, {written.name: digest_of(written) for written in staged.iterdir()})
    except OSError as error:
        raise ExportError(
            f"{output}: the export could not be written ({describe_os_error(error, output.parent)})"
        ) from error
    except ExFuseError as error:
        raise ExportError(f"{output}: the {export_format} export was not kept: {error}") from error
    except Exception as error:  # of one of several converters, which share no base of errors
        raise ExportError(f"{source} could not be exported to {export_format} ({brief(error)})") from error
    return agreements


def _describe(
    info: ModelMetadata, export_format: ExportFormat, precision: ExportPrecision, agreements: dict[str, ParityReport]
) -> dict[str, Any]:
    """Returns the content of `export.json`."""
    return {
        "format": export_format,
        "precision": precision,
        "model": info.to_json(),
        "input": {"name": IMAGES, "shape": ["N", "H", "W", 3], "type": "uint8", "channels": "RGB"},
        "checked": {name: agreement.to_json() for name, agreement in agreements.items()},
        "versions": {"exfuse": version("exfuse")},
    }


def check_request(output: Path, export_format: ExportFormat, precision: ExportPrecision) -> None:
    """Checks what can be checked before the model is read; see `export_model`."""
    require(WRITTEN_WITH.get(SUFFIXES[export_format], ()))
    if precision == "int8" and export_format != "openvino":
        raise ConfigError(f"int8 is made for openvino only, not for {export_format}")
    if precision == "int8":
        require(("nncf",))
    if os.path.ismount(output) or (output.exists() and output.samefile(Path())):
        raise OutputError(f"{output} cannot be replaced where it is; choose a folder in it")
    if not is_replaceable(output, REPORT_FILE):
        raise OutputError(
            f"{output} is no export, or was changed since; choose a folder that is empty or does not exist"
        )
    check_writable(output)


def _opened(path: Path, precision: ExportPrecision) -> list[Engine]:
    """Opens what was written: as it is opened by default, after fp32 if that is something else."""
    if path.suffix not in EXPORTED:
        return [ProgramEngine(path)]
    default = open_exported(path, None)[0]
    if default.precision in ("fp32", precision):
        return [default]
    return [open_exported(path, "fp32")[0], default]
