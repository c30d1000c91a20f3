"""Other people's weights, which come as pickles: read in a process of their own, with limits; nothing but tensors."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from exfuse.errors import CheckpointError, brief, did_you_mean
from exfuse.models.backbones import BACKBONES
from exfuse.models.storage.backbone_weights import load_backbone_state
from exfuse.models.storage.unpickle import REFUSED
from exfuse.outputs.file import new_file

TIME_LIMIT = 120  # seconds
# What training scripts put before a backbone's own names.
PREFIXES = ("module.", "model.", "backbone.", "encoder.")


@dataclass(frozen=True)
class ImportReport:
    """What became of a file's tensors.

    Attributes:
        taken: Names of those that the backbone has, all of its own.
        left: Names of those that it does not have, such as a classifier's.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]


def import_weights(source: Path, backbone: str, output: Path) -> ImportReport:
    """Reads a `.pth` file and writes what fits a backbone as safetensors, for `model.backbone_weights`.

    The file is unpickled with `weights_only`, which builds tensors and plain containers and calls nothing else, in a
    child process with limits on time and memory.

    Args:
        source: The file.
        backbone: A name of `BACKBONES`.
        output: The `.safetensors` file to write.

    Raises:
        CheckpointError: If the file holds anything else, is damaged, takes too much, or lacks a weight of the
            backbone or has several, such as those of a teacher and a student.
        OutputError: If it cannot be written.
    """
    if backbone not in BACKBONES:
        raise CheckpointError(f"there is no backbone {backbone!r}; {did_you_mean(backbone, BACKBONES)}")
    network = BACKBONES[backbone]()
    own = network.state_dict()
    state: dict[str, Tensor] = {}
    for name, value in _read_in_child(source).items():
        own_name = _own_name(name, own)
        if own_name in state:
            raise CheckpointError(f"{source}: holds {own_name!r} more than once, {name!r} being one of them")
        state[own_name] = value
    taken = {name: value for name, value in state.items() if name in own}
    load_backbone_state(network, taken, source=str(source))
    with new_file(output) as placed:
        placed.file.write(save(network.state_dict()))
    return ImportReport(tuple(taken), tuple(name for name in state if name not in own))


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """Returns a name without what stands before the backbone's own, if it is one of those then."""
    shortened = name
    while shortened not in own:
        prefix = next((prefix for prefix in PREFIXES if shortened.startswith(prefix)), None)
        if prefix is None:
            return name
        shortened = shortened.removeprefix(prefix)
    return shortened


def _read_in_child(source: Path) -> dict[str, Tensor]:
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        # -P: what lies in the current folder, beside the file perhaps, is not imported.
        command = [sys.executable, "-P", "-m", "exfuse.models.storage.unpickle", str(source), str(target)]
        try:
            done = subprocess.run(  # noqa: S603 - our own module
                command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(f"{source}: not read within {TIME_LIMIT} seconds") from error
        said = done.stderr.strip().splitlines()
        last_line = brief(Exception(said[-1])) if said else "without a word"
        if done.returncode == REFUSED:
            raise CheckpointError(f"{source}: {last_line}")
        if done.returncode != 0:
            raise CheckpointError(f"{source}: its reader ended with code {done.returncode} ({last_line})")
        try:
            return load_file(target)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{target}: what was read of {source} is not readable ({brief(error)})") from error
