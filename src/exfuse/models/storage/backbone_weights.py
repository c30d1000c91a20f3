"""Pre-trained weights for a backbone: public ImageNet state dicts, and folders written by `exfuse pretrain`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from exfuse.atomic_io import open_regular, read_file
from exfuse.errors import CheckpointError, brief
from exfuse.models.semantic_supervision import STAGES, SupervisedBackbone
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE, verify_model
from exfuse.models.storage.pretrained import check_finite

CLASSIFIER_TYPE = "exfuse_classifier"


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Loads pre-trained weights into a backbone, in place; classifiers are ignored.

    Args:
        backbone: The feature extractor. A `SupervisedBackbone` also loads the convolutions of the auxiliary heads; any
            other backbone ignores them.
        path: A folder written by `exfuse pretrain`, or a `.safetensors` file with torchvision's or timm's names.

    Raises:
        CheckpointError: If it cannot be read, was changed since it was written, contains non-finite weights, or has
            keys or shapes that do not match the backbone.
    """
    if not path.is_dir():
        if isinstance(backbone, SupervisedBackbone):
            raise CheckpointError(
                f"{path}: a weights file contains no auxiliary heads, which model.supervised_features=true needs; "
                "use a folder written by exfuse pretrain, or set model.supervised_features=false"
            )
        return load_backbone_state(backbone, _read(path), source=str(path))
    verify_model(path)
    description = _read_description(path)
    prefix = "backbone.body."
    if isinstance(backbone, SupervisedBackbone):
        prefix = "backbone."
        heads = description.get("architecture", {}).get("with_head", ())
        if without := [stage for stage, head in zip(STAGES, heads, strict=False) if not head]:
            raise CheckpointError(
                f"{path}: pre-trained without heads on {', '.join(without)}, but model.supervised_features=true needs "
                "all four; use a backbone pre-trained with all heads, or set model.supervised_features=false"
            )
    state = {
        key.removeprefix(prefix): value for key, value in _read(path / WEIGHTS_FILE).items() if key.startswith(prefix)
    }
    return load_backbone_state(backbone, state, source=str(path))


def load_backbone_state(backbone: nn.Module, state: Mapping[str, Tensor], source: str = "state dict") -> None:
    """Copies a state dict into a backbone; all keys must match, except that a classifier `fc.*` is ignored.

    Args:
        backbone: The feature extractor, changed in place.
        state: Name -> tensor, with torchvision's and timm's names.
        source: Name of the state dict for error messages.

    Raises:
        CheckpointError: If a key is missing or unknown, a shape differs, or a weight is not finite.
    """
    features = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = backbone.state_dict()
    # Some files published by timm lack the batch counters, which have no effect with a fixed momentum.
    missing = [key for key in own if key not in features and not key.endswith("num_batches_tracked")]
    unknown = [key for key in features if key not in own]
    differing = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in features.items()
        if key in own and value.shape != own[key].shape
    ]
    for problem, keys in (("missing keys", missing), ("unknown keys", unknown), ("different shapes", differing)):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise CheckpointError(f"{source}: does not fit this backbone; {problem}: {shown}")
    check_finite(features, source)
    with torch.no_grad():
        backbone.load_state_dict(own | features)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with open_regular(path):
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def pretraining_normalization(path: Path) -> tuple[list[float], list[float]] | None:
    """Returns the RGB mean and standard deviation (0 to 1) of a backbone's pre-training, or None if not recorded.

    Raises:
        CheckpointError: If the folder's metadata cannot be read.
    """
    description = _read_description(path) if path.is_dir() else {}
    mean, deviation = description.get("image_mean"), description.get("image_std")
    return None if mean is None or deviation is None else (list(mean), list(deviation))


def _read_description(folder: Path) -> dict[str, Any]:
    """Reads the metadata of a folder, and checks that it is that of a classifier."""
    try:
        content: dict[str, Any] = json.loads(read_file(folder / CONFIG_FILE))
        model_type = content["model_type"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: unreadable metadata ({brief(error)})") from error
    if model_type != CLASSIFIER_TYPE:
        raise CheckpointError(
            f"{folder}: model_type is {model_type!r} instead of {CLASSIFIER_TYPE!r}; use a folder "
            "written by exfuse pretrain"
        )
    return content
