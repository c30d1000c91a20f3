"""Reading a trained model, and writing one, whole or not at all; see `exfuse.models.storage.folder`."""

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
    """Writes a model folder, replacing one that is there only once the new one is complete.

    A folder that was changed or added to since we wrote it is not replaced but keeps its content under another name.

    Args:
        folder: Where to.
        model: The network.
        config: The content of `config.json`.
        card: The model card, in Markdown.

    Raises:
        CheckpointError: If it cannot be written, or a weight is not finite.
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
        source: A model folder, or "hf://OWNER/NAME" for a repository of the Hugging Face hub.

    Raises:
        CheckpointError: If it cannot be found or read, was changed since it was written, holds weights that are not
            finite or do not fit the architecture that it names.
    """
    folder = find_model(source)
    verify_model(folder)
    info = read_metadata(folder)
    try:
        # It takes no memory, whatever the description asks for; what is drawn at first brings torch's compiler.
        with contained(), torch.device("meta"):
            model = build_model(info)
    except WRONG_CONTENT as error:
        raise unreadable(folder, error) from error
    path = folder / WEIGHTS_FILE
    try:
        weights = _read_weights(path, model.state_dict())
        if not model.backbone.is_restorable:
            # It may hold tensors that are not in its state dict, whose values its constructor alone knows.
            with torch.random.fork_rng(devices=[]):
                model = build_model(info)
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights cannot be loaded ({brief(error)})") from error
    check_finite(weights, path)
    return model.eval(), info


def check_finite(weights: Mapping[str, Tensor], place: str | Path) -> None:
    """Checks that weights hold neither NaN nor infinity, which would spread to all scores and still give labels.

    Args:
        weights: Name -> tensor.
        place: Where they are from or for, to be named.

    Raises:
        CheckpointError: With the name of the first that does.
    """
    for name, value in weights.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{place}: the weights {name} are not finite")


def check_restorable(model: ExFuse, info: ModelMetadata) -> None:
    """Checks that a network will be itself again once it is saved and loaded.

    Ours are. A backbone of other people's may keep what training changes outside its state dict, draw constants anew
    each time, share weights, or compute no image of 64 x 64.

    Args:
        model: Left as it is.
        info: What it was built from.

    Raises:
        ConfigError: If it will not.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
            trained = copy.deepcopy(model).float().cpu().train()
            images = torch.rand(2, 3, 64, 64)
            trained(images)  # which moves all that training changes beside the parameters
            save_pretrained(Path(folder) / "model", trained, info.to_json(), "")
            restored, _ = load_pretrained(Path(folder) / "model")
            expected, found = trained.eval()(images).logits, restored(images).logits
    except Exception as error:  # of other people's code
        raise ConfigError(f"{info.name}: the network cannot be saved and loaded ({brief(error)})") from error
    if not (found - expected).abs().max() <= 1e-3 * expected.abs().max():
        raise ConfigError(f"{info.name}: saved and loaded, the network gives other scores; some of it is not saved")


def _read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads tensors of the expected names and shapes, of which nothing is read if one is not so."""
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        if differing := sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name)):
            name = differing[0]
            what = f"{name} has the shape {found.get(name, 'none')} instead of {shapes.get(name, 'none')}"
            raise ValueError(what + (f", and {len(differing) - 1} more" if len(differing) > 1 else ""))
        # Copied: a file that is mapped into memory and then written over would take the process with it.
        return {name: file.get_tensor(name).to(expected[name].dtype, copy=True) for name in found}
