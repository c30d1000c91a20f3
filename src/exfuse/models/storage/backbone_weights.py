"""Pre-trained weights for a backbone: public ImageNet state dicts, and what `exfuse pretrain` leaves."""

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
    """Loads pre-trained weights into a backbone, changed in place; classifiers are left out.

    Args:
        backbone: The feature extractor. A `SupervisedBackbone` takes the convolutions of the auxiliary heads, too; any
            other drops them.
        path: A folder that `exfuse pretrain` left, or a `.safetensors` file in torchvision's or timm's naming.

    Raises:
        CheckpointError: If it cannot be read, was changed since it was written, holds weights that are not finite, or
            its keys or shapes are not this backbone's.
    """
    if not path.is_dir():
        if isinstance(backbone, SupervisedBackbone):
            raise CheckpointError(
                f"{path}: a file of public weights has no auxiliary heads to read features from; "
                "give a folder of exfuse pretrain, or set model.supervised_features=false"
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
                f"{path}: pre-trained without a head on {', '.join(without)}, whose features are to be read from one; "
                "give a folder that was pre-trained with all of them, or set model.supervised_features=false"
            )
    state = {
        key.removeprefix(prefix): value for key, value in _read(path / WEIGHTS_FILE).items() if key.startswith(prefix)
    }
    return load_backbone_state(backbone, state, source=str(path))


def load_backbone_state(backbone: nn.Module, state: Mapping[str, Tensor], source: str = "state dict") -> None:
    """Copies a state dict into a backbone, strictly but for a classifier `fc.*`.

    Args:
        backbone: The feature extractor, changed in place.
        state: Name -> tensor, named as torchvision and timm name them.
        source: What to call the state in an error.

    Raises:
        CheckpointError: If a key is missing or unknown, a shape differs, or a weight is not finite.
    """
    features = {key: value for key, value in state.items() if not key.startswith("fc.")}
    own = backbone.state_dict()
    # timm's published files of some models leave out the batch counters; they do not matter with a fixed momentum.
    missing = [key for key in own if key not in features and not key.endswith("num_batches_tracked")]
    unknown = [key for key in features if key not in own]
    differing = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in features.items()
        if key in own and value.shape != own[key].shape
    ]
    for problem, keys in (("lacks", missing), ("has unknown", unknown), ("has other shapes:", differing)):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise CheckpointError(f"{source}: does not fit this backbone, it {problem} {shown}")
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
    """Returns the mean and the standard deviation of colours that a backbone was pre-trained with; None if not said.

    Raises:
        CheckpointError: If the folder's description cannot be read.
    """
    description = _read_description(path) if path.is_dir() else {}
    mean, deviation = description.get("image_mean"), description.get("image_std")
    return None if mean is None or deviation is None else (list(mean), list(deviation))


def _read_description(folder: Path) -> dict[str, Any]:
    """Reads what a folder says of itself, and checks that it holds a classifier."""
    try:
        content: dict[str, Any] = json.loads(read_file(folder / CONFIG_FILE))
        model_type = content["model_type"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: not a readable description ({brief(error)})") from error
    if model_type != CLASSIFIER_TYPE:
        raise CheckpointError(f"{folder}: a {model_type!r} model; backbone weights come from exfuse pretrain")
    return content
