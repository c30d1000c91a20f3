"""Eager torch on a CPU or GPU: the reference, and the only engine with test-time augmentation."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.data.samples import UInt8Array
from exfuse.inference.engines.base import Float32Array, Precision, check_finite
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.folding import fold
from exfuse.models.preprocessing import normalize
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # torch's names, for Intel, AMD and ARM


def load(
    folder: Path, precision: Precision | None, augmentation: TestTimeAugmentation, folded: bool = False
) -> tuple["TorchEngine", ModelMetadata]:
    """Opens a model folder: the network as trained, or folded; in fp32 by default; see `EngineSpec`."""
    model, info = load_pretrained(folder)
    engine = TorchEngine(fold(model) if folded else model, info, augmentation, precision or "fp32")
    engine.name = "torch, folded" if folded else "torch"
    return engine, info


def fast_precision(device_type: str) -> Precision:
    """Returns "bf16" if torch reports that the device has units for it, else "fp32"."""
    if device_type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
        has_units = any(capabilities.get(unit) for unit in BF16_UNITS)
    return "bf16" if has_units else "fp32"


def default_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchEngine:
    """Computes an `nn.Module` in eager mode; see `Engine`.

    Args:
        model: An `ExFuse`; put into eval mode and moved to the device.
        info: The model's metadata.
        augmentation: Scales and flips to average; none by default.
        precision: "fp32", or "bf16" for autocast.
        device: The device to compute on; by default a GPU if there is one.
    """

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        info: ModelMetadata,
        augmentation: TestTimeAugmentation = NO_TTA,
        precision: Precision = "fp32",
        device: torch.device | None = None,
    ) -> None:
        self._device = device or default_device()
        self.model = model.eval().to(self._device)
        if self._device.type == "cuda":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augmentation = augmentation
        self.precision: str = precision
        self.device = str(self._device)
        self._mean, self._std = info.image_mean, info.image_std

    def labels(self, images: UInt8Array) -> UInt8Array:
        """See `Engine`."""
        return most_likely(self._scores(images)).cpu().numpy()

    def scores(self, images: UInt8Array) -> Float32Array:
        """See `Engine` and `class_scores`."""
        return self._scores(images).cpu().numpy()

    @torch.inference_mode()
    def _scores(self, images: UInt8Array) -> Tensor:
        # Interleaved colours are torch's channels_last format, so nothing is copied here.
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        scores = class_scores(self._logits, normalize(pixels, self._mean, self._std), self.augmentation)
        check_finite(bool(scores.isfinite().all()))
        return scores

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(images).logits  # type: ignore[no-any-return]


def class_scores(logits_of: Callable[[Tensor], Tensor], images: Tensor, augmentation: TestTimeAugmentation) -> Tensor:
    """Returns the logits of a single pass, or the mean softmax probabilities of several; float32 `(N, K, H, W)`.

    Args:
        logits_of: The network: `(N, 3, h, w)` to float32 `(N, K, h, w)`.
        images: Normalised images `(N, 3, H, W)`.
        augmentation: Scales and flips to average.
    """
    if augmentation == NO_TTA:
        return logits_of(images)
    size = images.shape[-2:]
    total = torch.zeros(())
    for scale in augmentation.scales:
        resized = images
        if scale != 1.0:
            scaled = [max(1, round(side * scale)) for side in size]
            resized = F.interpolate(images, size=scaled, mode="bilinear", align_corners=False, antialias=scale < 1)
        total = total.to(images.device) + _resize(logits_of(resized).softmax(dim=1), size)
        if augmentation.flip:
            mirrored = logits_of(resized.flip(-1)).softmax(dim=1).flip(-1)
            total = total + _resize(mirrored, size)
    return total / augmentation.passes


def most_likely(scores: Tensor) -> Tensor:
    """Returns each pixel's class with the largest score, the first of equals: `(N, K, H, W)` to uint8 `(N, H, W)`."""
    # On a CPU this is several times faster than argmax over a dimension that is not the innermost.
    return scores.max(dim=1).indices.to(torch.uint8)


def _resize(scores: Tensor, size: torch.Size) -> Tensor:
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
