"""The cache: what lies there is whole and the user's own, or not used."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import gettempdir

import pytest

from exfuse import cache
from exfuse.cache import kept, private_folder
from exfuse.contained import contained
from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.predictor import Predictor


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path) -> None:
    (folder / "content").write_text("what was made")


def test_its_folders_are_the_users_alone_whatever_the_umask(root: Path) -> None:
    before = os.umask(0)
    try:
        folder = kept("kind", "name", write)
    finally:
        os.umask(before)
    assert folder == root / "kind" / "name"
    assert [path.stat().st_mode & 0o777 for path in (root, root / "kind")] == [0o700, 0o700]
    assert sorted(path.name for path in folder.iterdir()) == ["content", MANIFEST]
    assert list((root / "kind").iterdir()) == [folder]


@pytest.mark.parametrize("shared", ["", "xml"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_one_that_others_can_write_to_is_refused(root: Path, shared: str, mode: int, tmp_path: Path) -> None:
    private_folder("xml")
    (root / shared).chmod(mode)
    with pytest.raises(PermissionError, match=f"other users .*{root / shared};"):
        kept("xml", "name", write)
    info = ModelMetadata(
        "gcn_tiny",
        options_of("gcn_tiny", {"decoder": "stride4"}),
        ("a", "b"),
        ((0,) * 3, (9,) * 3),
        255,
        (0.5,) * 3,
        (0.25,) * 3,
    )
    save_pretrained(tmp_path / "model", build_model(info), info.to_json(), "")
    with pytest.raises(CheckpointError, match=f"other users .*{root / shared};"):
        Predictor.from_pretrained(tmp_path / "model", "openvino")
    assert list((root / "xml").iterdir()) == []


def test_one_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_folder("kind")
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    if os.getuid() == 0:  # whose folders everybody trusts
        os.chown(root, 12345, -1)
    with pytest.raises(PermissionError, match=f"other users .*{root};"):
        private_folder("kind")


def test_many_at_once_make_it_once_more_at_most(root: Path) -> None:
    private_folder("kind")
    (root / "kind" / "name").mkdir()
    (root / "kind" / "name" / "content").write_text("damaged")
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: kept("kind", "name", write), range(8)))
    assert folders == {root / "kind" / "name"}
    assert (root / "kind" / "name" / "content").read_text() == "what was made"
    assert len(list((root / "kind").iterdir())) == 1


def test_a_write_that_fails_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        kept("kind", "name", fail)
    assert list((root / "kind").iterdir()) == []


def test_where_the_cache_cannot_be_used_compiled_code_is_kept_in_a_folder_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    with contained():
        places = [Path(os.environ[name]) for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")]
        assert all(stat.S_IMODE(place.stat().st_mode) == 0o700 for place in places)
        assert not any(place.is_relative_to(tmp_path) for place in places)
    code = "import os\nfrom exfuse.contained import set_variables\nset_variables()\nprint(os.environ['MPLCONFIGDIR'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(gettempdir())
    assert not Path(result.stdout.strip()).exists()
