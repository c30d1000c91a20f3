"""The formats that `exfuse export` writes: one file each, and one entry in the table below."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from exfuse.errors import ConfigError, did_you_mean
from exfuse.export.formats.base import ExportFormat
from exfuse.models.options import PAD_MULTIPLE


def _call(module: str, function: str) -> Callable[..., Any]:
    """Returns a function of an export module, which is imported, with its libraries, when it is first called."""
    return lambda *arguments: getattr(import_module(f"exfuse.export.{module}"), function)(*arguments)


EXPORT_FORMATS = {
    entry.name: entry
    for entry in (
        ExportFormat(
            "openvino",
            ".xml",
            _call("formats.openvino", "write"),
            packages=("openvino",),
            extra="openvino",
            quantize=_call("quantize", "quantize"),
        ),
        ExportFormat(
            "onnx",
            ".onnx",
            _call("formats.onnx", "write"),
            packages=("onnxruntime", "onnx", "onnxscript"),
            extra="onnx",
        ),
        ExportFormat(
            "torch-export",
            ".pt2",
            _call("formats.torch_export", "write"),
            load=_call("formats.torch_export", "ProgramEngine"),
            min_side=PAD_MULTIPLE + 1,  # a traced program refuses images of a single stride
        ),
    )
}


def register_export_format(entry: ExportFormat) -> None:
    """Adds an export format, which `export_model` and `exfuse export --format` then know by its name.

    Raises:
        ConfigError: If a format of that name or suffix is registered already.
    """
    if entry.name in EXPORT_FORMATS or format_of(entry.suffix) is not None:
        raise ConfigError(
            f"an export format named {entry.name!r} or with the suffix {entry.suffix} is registered already"
        )
    EXPORT_FORMATS[entry.name] = entry


def find_export_format(name: str) -> ExportFormat:
    """Returns a registered format.

    Raises:
        ConfigError: If there is none of that name, with the nearest known ones.
    """
    if name not in EXPORT_FORMATS:
        raise ConfigError(f"there is no export format {name!r}; {did_you_mean(name, EXPORT_FORMATS)}")
    return EXPORT_FORMATS[name]


def format_of(suffix: str) -> ExportFormat | None:
    """Returns the format of a suffix; None without one."""
    return next((entry for entry in EXPORT_FORMATS.values() if entry.suffix == suffix), None)
