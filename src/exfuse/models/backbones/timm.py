"""Feature extractors of the timm library as backbones (extra `exfuse[timm]`)."""

from torch import Tensor

from exfuse.errors import ConfigError
from exfuse.models.backbones.base import STRIDES, Backbone, Features, FourInts


class TimmBackbone(Backbone):
    """Wraps a timm model with random weights to return four features at strides 4, 8, 16 and 32.

    timm is imported only here, because it needs torchvision, which this package otherwise does not.

    Args:
        name: Name of the timm model, for example "convnext_tiny".

    Raises:
        ConfigError: If timm is not installed or does not have the model, or the model lacks one of the four strides.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except (ImportError, RuntimeError) as error:
            raise ConfigError(f"timm/{name} needs the timm library: pip install 'exfuse[timm]' ({error})") from error
        try:
            self.model = timm.create_model(name, features_only=True, pretrained=False)
        except RuntimeError as error:
            raise ConfigError(f"timm/{name}: timm cannot build this model as a feature extractor: {error}") from error
        reductions = list(self.model.feature_info.reduction())
        missing = [stride for stride in STRIDES if stride not in reductions]
        if missing:
            raise ConfigError(f"timm/{name}: its features have strides {reductions}; strides {missing} are missing")
        # Of several features with the same stride, the last is the deepest.
        self.levels = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
        channels = self.model.feature_info.channels()
        self.channels: FourInts = tuple(channels[level] for level in self.levels)

    def forward(self, images: Tensor) -> Features:
        """Maps normalised images `(N, 3, H, W)` to the features at strides 4, 8, 16 and 32."""
        features = self.model(images)
        chosen = [features[level] for level in self.levels]
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            chosen = [feature.permute(0, 3, 1, 2) for feature in chosen]
        return tuple(chosen)
