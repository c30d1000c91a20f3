"""The formats that `exfuse export` writes: one file each, and one entry in the table below."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from exfuse.errors import ConfigError, did_you_mean
from exfuse.export.formats.base import ExportFormat
from exfuse.models.options import PAD_MULTIPLE


def _call(module: str, function: str) -> Callable[..., Any]:
    """Returns a function of an export module; the first call imports the module and its libraries."""
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
            min_side=PAD_MULTIPLE + 1,  # a traced program refuses sides of a single stride
        ),
    )
}


def register_export_format(entry: ExportFormat) -> None:
    """Registers an export format, which `export_model` and `exfuse export --format` then accept by name.

    Raises:
        ConfigError: If a format with that name or suffix is already registered.
    """
    if entry.name in EXPORT_FORMATS or format_of(entry.suffix) is not None:
        raise ConfigError(f"export format {entry.name!r}: its name or its suffix {entry.suffix} is already registered")
    EXPORT_FORMATS[entry.name] = entry


def find_export_format(name: str) -> ExportFormat:
    """Returns a registered format.

    Raises:
        ConfigError: If the name is unknown; the message suggests known ones.
    """
    if name not in EXPORT_FORMATS:
        raise ConfigError(f"unknown export format {name!r}; {did_you_mean(name, EXPORT_FORMATS)}")
    return EXPORT_FORMATS[name]


def format_of(suffix: str) -> ExportFormat | None:
    """Returns the format with a suffix; None if there is none."""
    return next((entry for entry in EXPORT_FORMATS.values() if entry.suffix == suffix), None)
