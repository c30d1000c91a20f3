import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exfuse.data.synthetic import write_scenes
from support.public_data import coco, photos, prepared, sbd, voc  # noqa: F401 - fixtures

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where converted models are kept: not among those of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("EXFUSE_CACHE")
    os.environ["EXFUSE_CACHE"] = str(folder)
    yield folder
    os.environ.pop("EXFUSE_CACHE")
    if before is not None:
        os.environ["EXFUSE_CACHE"] = before


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set: 12 scenes to train on, 4 to validate. Read it, never write into it."""
    root = tmp_path_factory.mktemp("pack")
    write_scenes(root, {"train": 12, "val": 4})
    return root


@pytest.fixture
def own_pack(pack: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return Path(shutil.copytree(pack, tmp_path / "own_pack"))


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The real road scenes; skipped where they are not on this machine."""
    return _real_data("camvid")


@pytest.fixture(scope="session")
def ccp() -> Path:
    """The real street fashion photographs; skipped where they are not on this machine."""
    return _real_data("ccp")


@pytest.fixture
def every_torch_warning() -> Iterator[None]:
    """Makes torch repeat the warnings that it gives only once a process, which an earlier test may have used up."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def _real_data(name: str) -> Path:
    parent = Path(os.environ.get("EXFUSE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    folder = parent / name
    if not (folder / "classes.json").is_file():
        pytest.skip(f"no data set in {folder}; set EXFUSE_TEST_DATA to the folder that holds {name}")
    return folder
