"""The README's Python runs as it stands there."""

from pathlib import Path

import pytest
from PIL import Image

from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from support.documents import blocks


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelMetadata(
        name="gcn_tiny",  # which is converted sooner than the whole network
        options=options_of("gcn_tiny", {"decoder": "stride4"}),
        class_names=("road", "sky"),
        palette=((128, 64, 128), (70, 130, 180)),
        ignore_index=255,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
    )
    save_pretrained(tmp_path / "runs/camvid_resnet18/model", build_model(info), info.to_json(), card="")
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    code = [block for name, block in blocks("python") if name == "README.md"]
    assert code
    for block in code:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own text
    assert (tmp_path / "overlay.png").is_file()
