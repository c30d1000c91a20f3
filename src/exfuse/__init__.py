"""ExFuse semantic segmentation: train on your own images, measure honestly, ship."""

from exfuse.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExFuseError,
    ExportError,
    RequestError,
    TrainingError,
)
from exfuse.inference.predictor import Prediction, Predictor
from exfuse.metrics import ConfusionMatrix
from exfuse.models.builders import MODELS, create_model
from exfuse.models.exfuse import ExFuse, ExFuseOutput
from exfuse.models.folding import fold

__all__ = [
    "MODELS",
    "CheckpointError",
    "ConfigError",
    "ConfusionMatrix",
    "DataError",
    "ExFuse",
    "ExFuseError",
    "ExFuseOutput",
    "ExportError",
    "Prediction",
    "Predictor",
    "RequestError",
    "TrainingError",
    "create_model",
    "fold",
]
