"""ExFuse semantic segmentation: train on your own images, measure honestly, ship."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exfuse.errors import CheckpointError, ConfigError, DataError, ExFuseError, ExportError, RequestError, TrainingError
from exfuse.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from exfuse.data.formats import register_format
    from exfuse.data.formats.base import DatasetFormat
    from exfuse.losses import register_loss
    from exfuse.metrics import ConfusionMatrix
    from exfuse.models.backbones.base import Backbone, register_backbone
    from exfuse.models.exfuse import ExFuse, ExFuseOutput
    from exfuse.models.folding import fold
    from exfuse.models.registry import create_model, list_models
    from exfuse.models.storage.saving import save_pretrained

__all__ = [
    "Backbone",
    "CheckpointError",
    "ConfigError",
    "ConfusionMatrix",
    "DataError",
    "DatasetFormat",
    "ExFuse",
    "ExFuseError",
]
__all__ += ["ExFuseOutput", "ExportError", "Prediction", "Predictor", "RequestError", "TrainingError", "create_model"]
__all__ += ["fold", "list_models", "register_backbone", "register_format", "register_loss", "save_pretrained"]

# Imported when first asked for: they bring torch, which a predictor on an exported model does without.
_TORCH = {"create_model": "models.registry", "list_models": "models.registry", "fold": "models.folding"}
_TORCH |= {"Backbone": "models.backbones.base", "register_backbone": "models.backbones.base"}
_TORCH |= {"register_loss": "losses"}
_TORCH |= {"DatasetFormat": "data.formats.base", "register_format": "data.formats"}
_TORCH |= {"save_pretrained": "models.storage.saving"}
_TORCH |= {"ConfusionMatrix": "metrics", "ExFuse": "models.exfuse", "ExFuseOutput": "models.exfuse"}


def __getattr__(name: str) -> Any:
    if name not in _TORCH:
        raise AttributeError(f"module 'exfuse' has no attribute {name!r}")
    return getattr(import_module(f"exfuse.{_TORCH[name]}"), name)
