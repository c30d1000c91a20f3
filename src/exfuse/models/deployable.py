"""The whole way from pixels to labels as one module, which is what is compiled and exported."""

import torch
from torch import Tensor, nn

from exfuse.models.exfuse import ExFuse, pad_to_multiple
from exfuse.models.folding import fold
from exfuse.models.storage.metadata import ModelMetadata


class DeployableModel(nn.Module):
    """Normalises, pads, computes the folded network, cuts back and chooses.

    Args:
        model: The network; left as it is.
        info: What its weights mean.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: ExFuse, info: ModelMetadata) -> None:
        super().__init__()
        self.model = fold(model)
        scale, shift = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (info.image_std, info.image_mean))
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels images.

        Args:
            images: RGB, uint8, `(N, H, W, 3)`.

        Returns:
            The classes, uint8 `(N, H, W)`, and their scores, float32 `(N, K, H, W)`.
        """
        height, width = images.shape[1:3]
        pixels = (images.permute(0, 3, 1, 2).float() - self.shift) / self.scale
        logits = self.model.segment(pad_to_multiple(pixels)).logits
        labels = logits.argmax(dim=1).to(torch.uint8)
        # Cut by index: of a slice, torch.export would ask whether its size differs from the whole.
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        return (
            labels.index_select(1, rows).index_select(2, columns),
            logits.index_select(2, rows).index_select(3, columns),
        )
