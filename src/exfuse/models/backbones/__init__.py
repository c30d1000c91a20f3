"""Feature extractors: one file a family, each of which registers its members."""

from exfuse.models.backbones import resnet  # noqa: F401 - which registers its members
from exfuse.models.backbones.base import BACKBONES, STRIDES, Backbone, Features, FourInts, register_backbone

__all__ = ["BACKBONES", "STRIDES", "Backbone", "Features", "FourInts", "register_backbone"]
