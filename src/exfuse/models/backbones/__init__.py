"""Feature extractors: one file per family, which registers its members when imported."""

from exfuse.models.backbones import resnet  # noqa: F401 - registers its members
from exfuse.models.backbones.base import BACKBONES, STRIDES, Backbone, Features, FourInts, register_backbone

__all__ = ["BACKBONES", "STRIDES", "Backbone", "Features", "FourInts", "register_backbone"]
