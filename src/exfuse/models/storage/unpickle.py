"""A program: reads the tensors of a `.pth` file and writes them as safetensors; the only place that unpickles.

It is started by `exfuse.models.storage.import_weights` for a file that nobody vouches for. `weights_only` builds
tensors and plain containers and refuses to call anything else; the limits are for files that are merely meant to be
heavy.
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

REFUSED = 3  # the exit status with a sentence about the file
SECONDS = 60
MEMORY_FACTOR, MEMORY_BASE = 4, 2**30  # bytes beyond what the process has when it begins: four times the file and this
# Where training scripts keep the weights among other things.
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")


def limit_resources(file_size: int) -> None:
    """Lets this process take no more processor time, memory and disk than a file of that size can be worth."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + MEMORY_FACTOR * file_size + MEMORY_BASE
    _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_CPU, SECONDS)
    _lower(resource.RLIMIT_FSIZE, MEMORY_FACTOR * file_size + 2**20)


def _lower(kind: int, limit: int) -> None:
    """Sets a limit, or leaves the one that is there already (`ulimit`) if it is lower."""
    present, _ = resource.getrlimit(kind)
    limit = limit if present == resource.RLIM_INFINITY else min(limit, present)
    resource.setrlimit(kind, (limit, limit))


def find_tensors(content: Any) -> dict[str, Tensor]:
    """Returns the named tensors of what was unpickled, one level down if they are not at the top.

    Raises:
        ValueError: If there are none.
    """
    if isinstance(content, dict):
        nested = (content[key] for key in NESTED_UNDER if isinstance(content.get(key), dict))
        for candidate in (*nested, content):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    raise ValueError("it holds no named tensors")


def what_is_wrong(error: Exception) -> str:
    """Returns why a file was not read; torch's own words are advice to read it unsafely, so only the name is taken."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it holds {named[1]}" if named else "it is a pickle of something else"
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "it takes more memory than is allowed"
    if isinstance(error, EOFError | LookupError):
        return "it is no file that torch.save wrote"
    return f"{type(error).__name__}: {brief(error)}"


def main() -> None:
    """Reads the file named first and writes the one named second; the last line of an error says what is wrong."""
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


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
