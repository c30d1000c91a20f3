"""Importing pickled weights from other sources: only tensors, read in a separate process with resource limits."""

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
# Prefixes that training scripts put before a backbone's own names.
PREFIXES = ("module.", "model.", "backbone.", "encoder.")


@dataclass(frozen=True)
class ImportReport:
    """Which tensors of a file were imported.

    Attributes:
        taken: Names of the imported tensors, which are all weights of the backbone.
        left: Names of the tensors that the backbone does not have, such as a classifier's.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]


def import_weights(source: Path, backbone: str, output: Path) -> ImportReport:
    """Converts the backbone weights in a `.pth` file to safetensors, for `model.backbone_weights`.

    The file is unpickled with `weights_only`, which builds only tensors and plain containers and calls nothing else, in
    a child process with limits on time, memory and disk space.

    Args:
        source: The `.pth` file.
        backbone: A name of `BACKBONES`.
        output: The `.safetensors` file to write.

    Raises:
        CheckpointError: If the file contains other objects, is damaged or exceeds the limits, or if a weight of the
            backbone is missing or occurs more than once, as in a file with a teacher and a student.
        OutputError: If `output` cannot be written.
    """
    if backbone not in BACKBONES:
        raise CheckpointError(f"unknown backbone {backbone!r}; {did_you_mean(backbone, BACKBONES)}")
    network = BACKBONES[backbone]()
    own = network.state_dict()
    state: dict[str, Tensor] = {}
    for name, value in _read_in_child(source).items():
        own_name = _own_name(name, own)
        if own_name in state:
            raise CheckpointError(f"{source}: contains {own_name!r} more than once, the last time as {name!r}")
        state[own_name] = value
    taken = {name: value for name, value in state.items() if name in own}
    load_backbone_state(network, taken, source=str(source))
    with new_file(output) as placed:
        placed.file.write(save(network.state_dict()))
    return ImportReport(tuple(taken), tuple(name for name in state if name not in own))


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    """Returns a name without known prefixes if the rest is one of the backbone's own names, else the name unchanged."""
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
        # -P keeps Python from importing modules in the current folder, which may be where the file came from.
        command = [sys.executable, "-P", "-m", "exfuse.models.storage.unpickle", str(source), str(target)]
        try:
            done = subprocess.run(  # noqa: S603 - runs our own module
                command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(f"{source}: not read within {TIME_LIMIT} seconds") from error
        lines = done.stderr.strip().splitlines()
        last_line = brief(Exception(lines[-1])) if lines else "no message"
        if done.returncode == REFUSED:
            raise CheckpointError(f"{source}: {last_line}")
        if done.returncode != 0:
            raise CheckpointError(f"{source}: the reading process exited with code {done.returncode} ({last_line})")
        try:
            return load_file(target)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{target}: unreadable tensors from {source} ({brief(error)})") from error
