"""ExFuse semantic segmentation: train on your own images, measure honestly, ship."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from exfuse.errors import (  # isort: skip
    CheckpointError, ConfigError, DataError, ExFuseError, ExportError, OutputError, ProcessError, RequestError,
    TrainingError,
)  # fmt: skip

if TYPE_CHECKING:
    from exfuse.data.datasets import open_dataset
    from exfuse.data.formats import register_format
    from exfuse.data.formats.base import DatasetFormat
    from exfuse.evaluation.evaluate import evaluate
    from exfuse.export.formats import register_export_format
    from exfuse.export.formats.base import ExportFormat
    from exfuse.export.write import export_model
    from exfuse.inference.engines import register_engine
    from exfuse.inference.engines.base import EngineSpec
    from exfuse.losses import register_loss
    from exfuse.metrics import ConfusionMatrix
    from exfuse.models.backbones.base import Backbone, register_backbone
    from exfuse.models.exfuse import ExFuse, ExFuseOutput
    from exfuse.models.folding import fold
    from exfuse.models.registry import create_model, list_models
    from exfuse.models.storage.saving import save_pretrained
    from exfuse.predictor import Prediction, Predictor
    from exfuse.training.api import train

__all__ = [
    "Backbone", "CheckpointError", "ConfigError", "ConfusionMatrix", "DataError", "DatasetFormat", "EngineSpec",
    "ExFuse", "ExFuseError", "ExFuseOutput", "ExportError", "ExportFormat", "OutputError", "Prediction", "Predictor",
    "ProcessError", "RequestError", "TrainingError", "create_model", "evaluate", "export_model", "fold", "list_models",
    "open_dataset", "register_backbone", "register_engine", "register_export_format", "register_format",
    "register_loss", "save_pretrained", "train",
]  # fmt: skip

# Imported on first access: most of them import torch, which a predictor of an exported model does not need, and the
# command line starts before any of them.
_MODULES = {
    "data.datasets": "open_dataset", "data.formats": "register_format", "data.formats.base": "DatasetFormat",
    "evaluation.evaluate": "evaluate", "export.formats": "register_export_format",
    "export.formats.base": "ExportFormat", "export.write": "export_model", "inference.engines": "register_engine",
    "inference.engines.base": "EngineSpec", "losses": "register_loss", "metrics": "ConfusionMatrix",
    "models.backbones.base": "Backbone register_backbone", "models.exfuse": "ExFuse ExFuseOutput",
    "models.folding": "fold", "models.registry": "create_model list_models",
    "models.storage.saving": "save_pretrained", "predictor": "Prediction Predictor", "training.api": "train",
}  # fmt: skip
_LAZY = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'exfuse' has no attribute {name!r}")
    return getattr(import_module(f"exfuse.{_LAZY[name]}"), name)
