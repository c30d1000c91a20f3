"""Torch, operation by operation: the reference, on a CPU or a GPU, and the only engine that averages."""

import torch
from torch import Tensor, nn

from exfuse.data.samples import UInt8Array
from exfuse.inference.engines.base import Float32Array, Precision, check_finite
from exfuse.inference.preprocessing import normalize
from exfuse.inference.scoring import class_scores, most_likely
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.models.metadata import ModelMetadata


class TorchEngine:
    """Computes an `nn.Module` as it is; see `Engine`.

    Args:
        model: An `ExFuse`; put into eval mode and moved to the device.
        info: What its weights mean.
        augmentation: Scales and flips to average; one plain pass by default.
        precision: "fp32", or "bf16" for autocast.
        device: Where to compute; by default a GPU if there is one.
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
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        """See `Engine`; the logits of a single pass, or the mean of the passes' softmax probabilities."""
        return self._scores(images).cpu().numpy()

    @torch.inference_mode()
    def _scores(self, images: UInt8Array) -> Tensor:
        # Pixels of interleaved colours are what torch calls channels_last, so nothing is copied here.
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        scores = class_scores(self._logits, normalize(pixels, self._mean, self._std), self.augmentation)
        check_finite(bool(scores.isfinite().all()))
        return scores

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(images).logits  # type: ignore[no-any-return]
