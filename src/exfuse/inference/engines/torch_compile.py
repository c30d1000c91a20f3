"""torch.compile with frozen weights; needs a C++ compiler, and time for each new image size."""

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exfuse.contained import contained
from exfuse.data.samples import UInt8Array
from exfuse.errors import ConfigError
from exfuse.inference.engines.base import Float32Array, Precision, check_finite
from exfuse.inference.engines.torch_eager import default_device, fast_precision
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.deployable import DeployableModel
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained

with contained():
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

SIZES = 256  # most image sizes that code is compiled for
UNLIMITED = 10**9


def load(
    folder: Path, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple["CompiledEngine", ModelMetadata]:
    """Opens a model folder, by default in the fastest precision that the device has units for; see `EngineSpec`."""
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if not any(compiler and shutil.which(compiler) for compiler in compilers):
        raise ConfigError("the engine compile needs a C++ compiler: g++, clang++, or the one that CXX names")
    model, info = load_pretrained(folder)
    return CompiledEngine(DeployableModel(model, info), precision or fast_precision(default_device().type)), info


class CompiledEngine:
    """Computes a `DeployableModel` compiled once per image size, on a GPU as a CUDA graph; see `Engine`.

    Args:
        graph: The model; moved to a GPU if there is one.
        precision: "fp32", or "bf16" for autocast.

    Raises:
        ConfigError: In use, if there are more than `SIZES` image sizes.
    """

    name = "compile"
    augmentation = NO_TTA

    def __init__(self, graph: DeployableModel, precision: Precision = "bf16") -> None:
        self._device = default_device()
        self.device = str(self._device)
        self.precision: str = precision
        fast = graph.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mode = "reduce-overhead" if self._device.type == "cuda" else None  # CUDA graphs
        self._sizes: set[tuple[int, ...]] = set()
        # One module per output, so that choosing labels fuses with interpolation and scores are never written.
        with contained():
            self._compiled = [
                torch.compile(_Output(fast, place), dynamic=False, fullgraph=True, mode=mode) for place in (0, 1)
            ]

    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        return self._run(0, images).cpu().numpy()

    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine`."""
        scores: Float32Array = self._run(1, images).cpu().numpy()
        check_finite(bool(np.isfinite(scores).all()))
        return scores

    @torch.inference_mode()
    def _run(self, place: int, images: UInt8Array) -> Tensor:
        if images.shape not in self._sizes and len(self._sizes) == SIZES:
            raise ConfigError(
                f"images {images.shape}: the engine compile supports at most {SIZES} image sizes; use another engine"
            )
        self._sizes.add(images.shape)
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16")
        limits = dynamo.patch(recompile_limit=UNLIMITED, accumulated_recompile_limit=UNLIMITED)  # shared by all engines
        # Precompiled headers would always be written to `/tmp`.
        frozen = inductor.patch(freezing=True, cpp_cache_precompile_headers=False)
        with contained(), autocast, frozen, limits:
            return self._compiled[place](torch.from_numpy(images).to(self._device))  # type: ignore[no-any-return]


class _Output(nn.Module):
    """One of the two outputs of a `DeployableModel`."""

    def __init__(self, graph: nn.Module, place: int) -> None:
        super().__init__()
        self.graph = graph
        self.place = place

    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)[self.place]  # type: ignore[no-any-return]
