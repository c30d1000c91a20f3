"""ONNX Runtime on the CPU."""

import json
from pathlib import Path
from typing import Any

from exfuse.contained import contained
from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError, brief
from exfuse.inference.engines.base import (
    IMAGES,
    LABELS,
    LOGITS,
    Float32Array,
    Precision,
    checked_labels,
    checked_scores,
)
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.storage.metadata import ModelMetadata

with contained():
    import onnxruntime as ort

INFO_KEY = "exfuse"  # key of our metadata in an ONNX model
_FATAL_ONLY = 4


def load(
    path: Path, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple["OnnxRuntimeEngine", ModelMetadata]:
    """Opens an `.onnx` file; see `EngineSpec`."""
    engine = OnnxRuntimeEngine(path)
    return engine, engine.info


class OnnxRuntimeEngine:
    """Computes an exported `DeployableModel`; see `Engine`.

    Args:
        path: The `.onnx` file.

    Raises:
        CheckpointError: If it cannot be read, was not exported by us or, in use, cannot be computed.
    """

    name = "onnxruntime"
    precision: str = "fp32"
    device = "cpu"
    augmentation = NO_TTA

    def __init__(self, path: Path) -> None:
        self._path = path
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            description = self._session.get_modelmeta().custom_metadata_map[INFO_KEY]
            self.info = ModelMetadata.from_json(json.loads(description))
        except Exception as error:  # the library's own exceptions have no common base
            raise CheckpointError(f"{path}: not a readable ONNX model exported by exfuse ({brief(error)})") from error

    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        return checked_labels(self._run(LABELS, images), images, len(self.info.class_names), self._path)

    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine`."""
        return checked_scores(self._run(LOGITS, images), images, len(self.info.class_names), self._path)

    def _run(self, output: str, images: UInt8Array) -> Any:
        try:
            return self._session.run([output], {IMAGES: images})[0]
        except Exception as error:
            raise CheckpointError(f"{self._path}: ONNX Runtime cannot compute it ({brief(error)})") from error
