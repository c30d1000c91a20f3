"""Exporting a model to another runtime, and checking the export before it appears under its name."""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from exfuse.atomic_io import atomic_folder, describe_os_error, digest_of, write_file
from exfuse.errors import ConfigError, ExFuseError, ExportError, OutputError, brief
from exfuse.export.formats import EXPORT_FORMATS, find_export_format
from exfuse.export.formats.base import MAIN_FILE, ExportFormat
from exfuse.export.samples import export_samples
from exfuse.export.trace import export_program
from exfuse.export.verify import ParityReport, compare_engines
from exfuse.inference.engines import engine_of
from exfuse.inference.engines.base import IMAGES, Engine
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.inference.tta import NO_TTA
from exfuse.manifest import write_manifest
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained
from exfuse.outputs.folder import is_replaceable
from exfuse.outputs.place import check_writable
from exfuse.packages import require

ExportPrecision = Literal["fp32", "int8"]

REPORT_FILE = "export.json"


def export_model(
    source: str | Path,
    output: str | Path,
    export_format: str = "openvino",
    precision: ExportPrecision = "fp32",
    *,
    data: str | Path | None = None,
    split: str = "val",
    images: str | Path | None = None,
    limit: int = 100,
) -> dict[str, ParityReport]:
    """Writes a folder with the exported model, its metadata and the report of its comparison with the network.

    The export is written under a temporary name, opened with the engine that computes it, and compared with the
    network on images. It gets its final name only if it passes; a failure leaves nothing behind. The comparison is in
    fp32, which shows that the file computes the same function, and in the engine's default precision on this machine.

    Args:
        source: A model folder, or "hf://OWNER/NAME" on the Hugging Face hub.
        output: The folder to write. An older export there is replaced; anything else is refused.
        export_format: A name in `EXPORT_FORMATS`.
        precision: "fp32", or "int8" for OpenVINO, calibrated on the images.
        data: A labelled data set to check the export and to calibrate int8 with: a folder or a dataset file.
        split: The data set's split to use.
        images: Images without labels instead: a file, a folder or a glob. By default, drawn scenes are used.
        limit: Largest number of images to use.

    Returns:
        Precision -> parity report, for each precision that was compared.

    Raises:
        CheckpointError: If the model cannot be read.
        ConfigError: If a package that the format needs is not installed, or int8 has no images for its calibration.
        DataError: If an image cannot be read, or the data set has other classes than the model.
        OutputError: If `output` exists and is not an export, or cannot be written.
        ExportError: If the export cannot be made or written, or differs from the network by more than `TOLERANCES`.
    """
    output = Path(output)
    entry = check_request(output, export_format, precision)
    if precision == "int8" and data is None and images is None:
        raise ConfigError("int8 needs images for its calibration; give data or images")
    model, info = load_pretrained(source)
    samples = export_samples(info, data, split, images, limit)
    samples = [sample for sample in samples if min(sample.mask.shape) >= entry.min_side]
    network = TorchEngine(model, info, device=torch.device("cpu"))  # a GPU's convolutions may round more
    try:
        with atomic_folder(output.resolve(), lambda older: is_replaceable(older, REPORT_FILE)) as staged:
            path = staged / f"{MAIN_FILE}{entry.suffix}"
            entry.write(export_program(model, info), info, path)
            if precision == "int8" and entry.quantize is not None:
                entry.quantize(path, network, samples, info)
            reports = {}
            for export in _opened(path, entry, precision):
                reports[export.precision] = compare_engines(network, export, samples, info)
                reports[export.precision].check(export.precision)
            description = _describe(info, export_format, precision, reports)
            write_file(staged / REPORT_FILE, (json.dumps(description, indent=2) + "\n").encode())
            write_manifest(staged, {written.name: digest_of(written) for written in staged.iterdir()})
    except OSError as error:
        raise ExportError(
            f"{output}: the export cannot be written ({describe_os_error(error, output.parent)})"
        ) from error
    except ExFuseError as error:
        raise ExportError(f"{output}: the {export_format} export was not kept: {error}") from error
    except Exception as error:  # from a converter; their exceptions have no common base
        raise ExportError(f"{source}: cannot be exported to {export_format} ({brief(error)})") from error
    return reports


def _describe(
    info: ModelMetadata, export_format: str, precision: ExportPrecision, reports: dict[str, ParityReport]
) -> dict[str, Any]:
    """Returns the content of `export.json`."""
    return {
        "format": export_format,
        "precision": precision,
        "model": info.to_json(),
        "input": {"name": IMAGES, "shape": ["N", "H", "W", 3], "type": "uint8", "channels": "RGB"},
        "checked": {name: report.to_json() for name, report in reports.items()},
        "versions": {"exfuse": version("exfuse")},
    }


def check_request(output: Path, export_format: str, precision: ExportPrecision) -> ExportFormat:
    """Checks the arguments before the model is read, and returns the format; see `export_model`."""
    entry = find_export_format(export_format)
    require(entry.packages, entry.extra)
    if precision == "int8":
        if entry.quantize is None:
            with_int8 = [other.name for other in EXPORT_FORMATS.values() if other.quantize is not None]
            raise ConfigError(f"int8 is available for {' and '.join(with_int8)} only, not for {export_format}")
        require(("nncf",), "int8")
    if os.path.ismount(output) or (output.exists() and output.samefile(Path())):
        raise OutputError(
            f"{output} is a mount point or the current folder, which cannot be replaced; choose a folder inside it"
        )
    if not is_replaceable(output, REPORT_FILE):
        raise OutputError(
            f"{output} is not an export, or was changed since it was written; choose a new or empty folder"
        )
    check_writable(output)
    return entry


def _opened(path: Path, entry: ExportFormat, precision: ExportPrecision) -> list[Engine]:
    """Opens a written export in its default precision and, if that is neither `precision` nor fp32, in fp32 as well."""
    if entry.load is not None:
        return [entry.load(path)]
    spec = engine_of(entry.suffix)
    if spec is None:
        raise ConfigError(f"no engine computes {entry.suffix} files, so the export cannot be checked")
    default = spec.load(path, None, NO_TTA)[0]
    if default.precision in ("fp32", precision):
        return [default]
    return [spec.load(path, "fp32", NO_TTA)[0], default]
