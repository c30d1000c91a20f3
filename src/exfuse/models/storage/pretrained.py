"""Loading a model folder, and writing one atomically; see `exfuse.models.storage.folder`."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from exfuse.atomic_io import atomic_folder, describe_os_error, write_file
from exfuse.contained import contained
from exfuse.errors import CheckpointError, ConfigError, brief
from exfuse.manifest import write_manifest
from exfuse.models.exfuse import ExFuse
from exfuse.models.registry import build_model
from exfuse.models.storage.folder import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    WRONG_CONTENT,
    find_model,
    read_metadata,
    unreadable,
    verify_model,
)
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.outputs.folder import is_replaceable


def save_pretrained(folder: Path, model: nn.Module, config: dict[str, Any], card: str) -> None:
    """Writes a model folder; an existing one is replaced only when the new one is complete.

    If the existing folder was changed since we wrote it, it is kept under another name.

    Args:
        folder: The folder to write.
        model: The network.
        config: The content of `config.json`.
        card: The model card, in Markdown.

    Raises:
        CheckpointError: If the folder cannot be written, or a weight is not finite.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    check_finite(weights, folder)
    try:
        with atomic_folder(folder, lambda older: is_replaceable(older, WEIGHTS_FILE)) as staged:
            editable = {CARD_FILE: write_file(staged / CARD_FILE, card.encode())}
            contents = {
                WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
                CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
            }
            files = {name: write_file(staged / name, content) for name, content in contents.items()}
            write_manifest(staged, files, editable)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the model could not be written ({describe_os_error(error, folder.parent)})"
        ) from error


def load_pretrained(source: str | Path) -> tuple[ExFuse, ModelMetadata]:
    """Loads a trained network in eval mode.

    Args:
        source: A model folder, or "hf://OWNER/NAME" for a repository on the Hugging Face hub.

    Raises:
        CheckpointError: If it cannot be found or read, was changed since it was written, or contains weights that are
            not finite or do not fit its architecture.
    """
    folder = find_model(source)
    verify_model(folder)
    info = read_metadata(folder)
    try:
        # On the meta device, even invalid metadata allocates no memory. The first random initialisation there imports
        # torch's compiler, whose side effects `contained` undoes.
        with contained(), torch.device("meta"):
            model = build_model(info)
    except WRONG_CONTENT as error:
        raise unreadable(folder, error) from error
    path = folder / WEIGHTS_FILE
    try:
        weights = _read_weights(path, model.state_dict())
        if not model.backbone.is_restorable:
            # Tensors outside the state dict get their values only from the constructor.
            with torch.random.fork_rng(devices=[]):
                model = build_model(info)
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights cannot be loaded ({brief(error)})") from error
    check_finite(weights, path)
    return model.eval(), info


def check_finite(weights: Mapping[str, Tensor], place: str | Path) -> None:
    """Checks that no weight is NaN or infinite: the scores would be meaningless, yet argmax would still return labels.

    Args:
        weights: Name -> tensor.
        place: Source or destination of the weights, for the error message.

    Raises:
        CheckpointError: If a weight is not finite; the message contains the name of the first one.
    """
    for name, value in weights.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{place}: the weights {name} are not finite")


def check_restorable(model: ExFuse, info: ModelMetadata) -> None:
    """Checks that a network computes the same scores after it is saved and loaded.

    The package's own networks do. A backbone from elsewhere may keep trained state outside its state dict, draw random
    constants in its constructor, share weights, or not accept an image of 64 x 64 pixels.

    Args:
        model: The network; not changed.
        info: The metadata it was built from.

    Raises:
        ConfigError: If the network cannot be saved and loaded, or its scores differ afterwards.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
            trained = copy.deepcopy(model).float().cpu().train()
            images = torch.rand(2, 3, 64, 64)
            trained(images)  # updates all state that training changes besides the parameters
            save_pretrained(Path(folder) / "model", trained, info.to_json(), "")
            restored, _ = load_pretrained(Path(folder) / "model")
            expected, found = trained.eval()(images).logits, restored(images).logits
    except Exception as error:  # code from outside the package can raise anything
        raise ConfigError(f"{info.name}: the network cannot be saved and loaded ({brief(error)})") from error
    if not (found - expected).abs().max() <= 1e-3 * expected.abs().max():
        raise ConfigError(
            f"{info.name}: the scores differ after saving and loading; part of the network is not in its state dict"
        )


def _read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads the tensors of a file; names and shapes are checked before any data is read."""
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        if differing := sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name)):
            name = differing[0]
            problem = f"{name} has the shape {found.get(name, 'none')} instead of {shapes.get(name, 'none')}"
            raise ValueError(problem + (f", and {len(differing) - 1} more" if len(differing) > 1 else ""))
        # Copied, because overwriting a file that is still mapped into memory can crash the process.
        return {name: file.get_tensor(name).to(expected[name].dtype, copy=True) for name in found}
