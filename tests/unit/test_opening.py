"""Where converted models are kept, and what happens when they cannot be."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from exfuse.cache import cache_folder
from exfuse.errors import CheckpointError
from exfuse.export import trace
from exfuse.export.formats import EXPORT_FORMATS, format_of
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
    with pytest.warns(RuntimeWarning, match="torch.*file/xml/"):
        assert Predictor.from_pretrained(tmp_path / "model").engine.name == "torch, folded", "auto goes on without"


@pytest.mark.parametrize(
    ("engine", "suffixes"),
    [("openvino", (".xml", ".bin")), pytest.param("onnxruntime", (".onnx",), marks=pytest.mark.nightly)],
)
def test_a_damaged_converted_model_is_converted_anew(
    engine: str, suffixes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    save_pretrained(tmp_path / "model", build_model(INFO), INFO.to_json(), "")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = Predictor.from_pretrained(tmp_path / "model", engine, "fp32").logits(image)
    paths = [next((tmp_path / "cache").rglob(f"model{suffix}")) for suffix in suffixes]
    contents = {path.suffix: path.read_bytes() for path in paths}
    made = []

    def convert_again(program: object, info: object, target: Path) -> None:  # to the same bytes, at once
        made.append(target)
        for suffix, content in contents.items():
            target.with_suffix(suffix).write_bytes(content)

    monkeypatch.setattr(trace, "export_program", lambda *_: None)
    entry = format_of(suffixes[0])
    monkeypatch.setitem(EXPORT_FORMATS, entry.name, entry._replace(write=convert_again))
    for path, damage in itertools.product(paths, ("none", "cut", "flipped", "zeroed")):
        content = bytearray(contents[path.suffix])
        if damage == "cut":
            del content[1000:]
        elif damage == "flipped":
            content[len(content) // 2] ^= 4
        elif damage == "zeroed":
            content[-100_000:] = bytes(100_000)
        path.write_bytes(content)
        made.clear()
        scores = Predictor.from_pretrained(tmp_path / "model", engine, "fp32").logits(image)
        np.testing.assert_array_equal(scores, expected)
        assert len(made) == (damage != "none"), (path, damage)


def test_an_export_is_found_by_its_file_or_its_folder(tmp_path: Path) -> None:
    assert find_exported(tmp_path) is None
    assert find_exported(tmp_path / "gone") is None
    path = tmp_path / "model.onnx"
    path.touch()
    assert find_exported(tmp_path) == find_exported(path) == path
