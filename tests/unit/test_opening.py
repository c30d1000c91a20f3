"""Where converted models are kept, and what happens when they cannot be."""

from pathlib import Path

import pytest

from exfuse.cache import cache_folder
from exfuse.errors import CheckpointError
from exfuse.export.open import find_exported
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.predictor import Predictor

INFO = ModelMetadata(
    name="gcn_tiny",
    options=options_of("gcn_tiny", {"decoder": "stride4"}),
    class_names=("a", "b"),
    palette=((0, 0, 0), (9, 9, 9)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("EXFUSE_CACHE", "~/somewhere")
    assert cache_folder() == Path("~/somewhere").expanduser()
    monkeypatch.delenv("EXFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/exfuse")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("~/.cache/exfuse").expanduser()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(tmp_path / "model", build_model(INFO), INFO.to_json(), "")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"model: .*file/xml/.*EXFUSE_CACHE"):
        Predictor.from_pretrained(tmp_path / "model", "openvino")
    with pytest.warns(RuntimeWarning, match="torch.*file/(xml|onnx)/"):
        assert Predictor.from_pretrained(tmp_path / "model").engine.name == "torch, folded", "auto goes on without"


def test_an_export_is_found_by_its_file_or_its_folder(tmp_path: Path) -> None:
    assert find_exported(tmp_path) is None
    assert find_exported(tmp_path / "gone") is None
    path = tmp_path / "model.onnx"
    path.touch()
    assert find_exported(tmp_path) == find_exported(path) == path
