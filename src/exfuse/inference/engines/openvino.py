"""OpenVINO on the CPU."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

from exfuse.contained import contained
from exfuse.data.samples import UInt8Array
from exfuse.errors import CheckpointError, brief
from exfuse.inference.engines.base import (
    LABELS,
    LOGITS,
    Float32Array,
    Precision,
    checked_labels,
    checked_scores,
)
from exfuse.inference.engines.signal_stack import kept_signal_stack
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.storage.metadata import ModelMetadata

with contained():
    import openvino as ov

INFO_PATH = ["exfuse", "info"]  # path of our metadata in a model's runtime information
INT8_PATH = ["exfuse", "int8"]  # present in quantised models only
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
KEPT_OPERATIONS = 500  # compiled per image size; with OpenVINO's default of 5,000, memory grows for thousands of images


def load(
    path: Path, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple["OpenVINOEngine", ModelMetadata]:
    """Opens an `.xml` file; see `EngineSpec`."""
    model, info = read_openvino(path)
    return OpenVINOEngine(model, info, precision, path), info


def read_openvino(path: Path) -> tuple[ov.Model, ModelMetadata]:
    """Reads an exported model.

    Args:
        path: The `.xml` file; the weights are in the `.bin` file next to it.

    Raises:
        CheckpointError: If it cannot be read or was not exported by us.
    """
    try:
        core = ov.Core()
        core.set_property({"ENABLE_MMAP": False})  # overwriting a mapped file would crash the process
        model = core.read_model(path)
        return model, ModelMetadata.from_json(json.loads(model.get_rt_info(INFO_PATH).astype(str)))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable OpenVINO model exported by exfuse ({brief(error)})") from error


def save_openvino(model: ov.Model, info: ModelMetadata, path: Path) -> None:
    """Writes a model that `read_openvino` can read.

    Args:
        model: Has the input and outputs of a `DeployableModel`.
        info: The model's metadata.
        path: The `.xml` file.

    Raises:
        OSError: If it cannot be written.
    """
    model.set_rt_info(json.dumps(info.to_json()), INFO_PATH)
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # also raised for a full disk
        raise OSError(errno.EIO, f"OpenVINO could not write {path.name} ({brief(error)})") from error


def best_precision() -> Precision:
    """Returns "bf16" if the processor has units for it, else "fp32"."""
    with kept_signal_stack():
        capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


class OpenVINOEngine:
    """Computes an exported `DeployableModel`; see `Engine`.

    Args:
        model: As returned by `read_openvino`.
        info: The model's metadata.
        precision: Of operations that are not int8; by default the fastest that the processor has units for.
        source: Where the model was read from, for errors.

    Raises:
        CheckpointError: In use, if OpenVINO cannot compile or compute it.
    """

    name = "openvino"
    device = "cpu"
    augmentation = NO_TTA

    def __init__(
        self, model: ov.Model, info: ModelMetadata, precision: Precision | None = None, source: Path | None = None
    ) -> None:
        computed = precision or best_precision()
        self.precision: str = "int8" if model.has_rt_info(INT8_PATH) else computed
        self._model = model
        self._classes = len(info.class_names)
        self._source = source or "the model"
        self._options = {
            "INFERENCE_PRECISION_HINT": HINTS[computed],
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_RUNTIME_CACHE_CAPACITY": KEPT_OPERATIONS,
        }
        self._compiled: dict[str, ov.CompiledModel] = {}
        self._lock = threading.Lock()

    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        return checked_labels(self._run(LABELS, images), images, self._classes, self._source)

    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine`."""
        return checked_scores(self._run(LOGITS, images), images, self._classes, self._source)

    def _run(self, output: str, images: UInt8Array) -> Any:
        # A compiled model runs one image at a time, on all cores.
        with self._lock, kept_signal_stack():
            try:
                if output not in self._compiled:
                    self._compiled[output] = self._compile(output)
                return self._compiled[output](images)[0]
            except RuntimeError as error:
                raise CheckpointError(f"{self._source}: OpenVINO cannot compute it ({brief(error)})") from error

    def _compile(self, output: str) -> ov.CompiledModel:
        # Only operations that this output needs are kept, so that labels do not wait for scores to be copied.
        alone = ov.Model([self._model.output(output)], self._model.get_parameters(), self._model.friendly_name)
        return ov.Core().compile_model(alone, "CPU", self._options)
