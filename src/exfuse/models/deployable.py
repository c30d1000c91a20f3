"""The complete graph from pixels to labels as one module, for compiling and exporting."""

import torch
from torch import Tensor, nn

from exfuse.models.exfuse import ExFuse, pad_to_multiple
from exfuse.models.folding import fold
from exfuse.models.storage.metadata import ModelMetadata


class DeployableModel(nn.Module):
    """Normalises and pads images, runs the folded network, crops its scores and takes the argmax.

    Args:
        model: The network; a folded copy is used.
        info: Metadata of the model, which contains the normalisation.
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
        """Segments images.

        Args:
            images: RGB, uint8, `(N, H, W, 3)`.

        Returns:
            The class of each pixel, uint8 `(N, H, W)`, and the logits of all classes, float32 `(N, K, H, W)`.
        """
        height, width = images.shape[1:3]
        pixels = (images.permute(0, 3, 1, 2).float() - self.shift) / self.scale
        logits = self.model.segment(pad_to_multiple(pixels)).logits
        labels = logits.argmax(dim=1).to(torch.uint8)
        # Cropped by index: for a slice, torch.export tests whether its size differs from the whole and hard-codes the
        # answer.
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        return (
            labels.index_select(1, rows).index_select(2, columns),
            logits.index_select(2, rows).index_select(3, columns),
        )
