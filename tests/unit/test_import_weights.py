"""What is said of a `.pth` file that is refused, and of a machine that does not let it be read."""

import argparse
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exfuse.errors import CheckpointError
from exfuse.models.backbones import resnet
from exfuse.models.storage.import_weights import import_weights
from exfuse.models.storage.unpickle import what_is_wrong

ADVICE = ("weights_only", "safe_globals", "torch.load", "trust", "\033")


def state() -> dict[str, object]:
    return dict(resnet.tiny().state_dict())


class Opener:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("/dev/null",)


HELD: dict[str, tuple[Callable[[Path], object], str]] = {
    "options": (lambda path: torch.save({"model": state(), "args": argparse.Namespace()}, path), "argparse.Namespace"),
    "older file": (
        lambda path: torch.save({"args": argparse.Namespace()}, path, _use_new_zipfile_serialization=False),
        "argparse.Namespace",
    ),
    "a module": (lambda path: torch.save(torch.nn.Linear(1, 1), path), "torch.nn.modules.linear.Linear"),
    "a function": (lambda path: torch.save({"weight": Opener()}, path), "io.open"),
    "another pickle": (
        lambda path: path.write_bytes(pickle.dumps({"weight": {1}}, protocol=4)),
        "pickle of other objects",
    ),
    "text": (lambda path: path.write_text("hello"), "written by torch.save"),
    "nothing": (lambda path: path.touch(), "written by torch.save"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", HELD)
def test_what_a_refused_file_holds_is_named_without_advice_to_load_it_unsafely(kind: str, tmp_path: Path) -> None:
    write, held = HELD[kind]
    write(tmp_path / "weights.pth")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of several libraries
        torch.load(tmp_path / "weights.pth", weights_only=True)
    said = what_is_wrong(caught.value)
    assert said.endswith(held)
    assert not [word for word in ADVICE if word in said.replace(held, "")]


def test_what_a_refused_file_holds_reaches_the_user(tmp_path: Path) -> None:
    source = tmp_path / "weights.pth"
    torch.save({"model": state(), "args": argparse.Namespace()}, source)
    with pytest.raises(CheckpointError) as caught:
        import_weights(source, "tiny", tmp_path / "out.safetensors")
    assert re.search(rf"^{source}: .*\bargparse\.Namespace\b", str(caught.value))


def test_memory_that_is_not_granted_is_no_fault_of_the_files() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")):
        assert what_is_wrong(error) == "it needs more memory than allowed"


def test_a_limit_on_the_size_of_files_is_kept_and_named(tmp_path: Path) -> None:
    source, output = tmp_path / "weights.pth", tmp_path / "out.safetensors"
    torch.save(state(), source)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"weights\.pth.*too large"):
            import_weights(source, "tiny", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not output.exists()
