"""A program that converts the tensors of a `.pth` file to safetensors; the only code that unpickles.

`exfuse.models.storage.import_weights` runs it on untrusted files. `weights_only` builds only tensors and plain
containers and refuses to call anything else; the resource limits protect against files made to exhaust the machine.
"""

import pickle
import re
import resource
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor

from exfuse.errors import brief

REFUSED = 3  # exit code for a bad file; the last line of stderr is the reason
SECONDS = 60
MEMORY_FACTOR, MEMORY_BASE = 4, 2**30  # memory beyond that at the start: 4 x the file size + 2**30 bytes
# Keys under which training scripts store the weights.
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")


def limit_resources(file_size: int) -> None:
    """Limits the processor time, memory and file size of this process to what a file of `file_size` bytes can need."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + MEMORY_FACTOR * file_size + MEMORY_BASE
    _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_CPU, SECONDS)
    _lower(resource.RLIMIT_FSIZE, MEMORY_FACTOR * file_size + 2**20)


def _lower(kind: int, limit: int) -> None:
    """Sets a resource limit unless a lower one is already set (`ulimit`)."""
    present, _ = resource.getrlimit(kind)
    limit = limit if present == resource.RLIM_INFINITY else min(limit, present)
    resource.setrlimit(kind, (limit, limit))


def find_tensors(content: Any) -> dict[str, Tensor]:
    """Returns the named tensors of an unpickled object, those under a key of `NESTED_UNDER` first.

    Raises:
        ValueError: If there are none.
    """
    if isinstance(content, dict):
        nested = (content[key] for key in NESTED_UNDER if isinstance(content.get(key), dict))
        for candidate in (*nested, content):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    raise ValueError("it contains no named tensors")


def what_is_wrong(error: Exception) -> str:
    """Returns why a file could not be read.

    Of torch's own message only the name of the refused object is used, because it advises loading the file unsafely.
    """
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it contains {named[1]}" if named else "it is a pickle of other objects"
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "it needs more memory than allowed"
    if isinstance(error, EOFError | LookupError):
        return "it was not written by torch.save"
    return f"{type(error).__name__}: {brief(error)}"


def main() -> None:
    """Reads the file in the first argument and writes the one in the second; see `REFUSED` for errors."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    limit_resources(source.stat().st_size)
    try:
        tensors = find_tensors(torch.load(source, map_location="cpu", weights_only=True))
        copied = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    except Exception as error:
        _refuse(f"not a file of plain tensors ({what_is_wrong(error)})")
    try:
        save_file(copied, target)
    except Exception as error:
        _refuse(f"its tensors could not be written to {target} ({brief(error)})")


def _refuse(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
