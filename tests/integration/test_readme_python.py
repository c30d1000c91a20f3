"""The Python of the documents runs as it stands there."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exfuse
from exfuse import losses
from exfuse.data.formats import FORMATS
from exfuse.data.synthetic import write_scenes
from exfuse.models.backbones import BACKBONES
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


# What a run of seconds needs, in place of the page's number of epochs.
SHORT = (
    'epochs=1, evaluate_every=1, batch_size=4, precision="fp32", '
    'model={"name": "gcn_tiny", "decoder_width": 8}, optimizer={"warmup_steps": 1}'
)


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "path/to/camvid", {"train": 8, "val": 2})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save("street.jpg")
    code = [block for name, block in blocks("python") if name == "python.md"]
    assert sum(block.count("epochs=20") for block in code) == 1
    try:
        for block in code:
            exec(compile(block.replace("epochs=20", SHORT), "python.md", "exec"), {})  # noqa: S102 - our own text
        assert "my_focal" in losses.LOSSES
        (tmp_path / "mine/train/labels").mkdir(parents=True)
        (tmp_path / "mine/train/images").mkdir()
        for kind, name in (("images", "x.png"), ("labels", "x_mask.png")):
            Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2)).save(tmp_path / "mine/train" / kind / name)
        found = exfuse.open_dataset(tmp_path / "mine", "train")
        assert (found.entries[0].mask.name, len(found.classes), found[0].mask.max()) == ("x_mask.png", 4, 3)
    finally:
        losses.LOSSES.pop("my_focal", None)
        FORMATS.pop("labels", None)
        BACKBONES.pop("plain", None)
    assert (tmp_path / "exported" / "model.onnx").is_file()
    assert (tmp_path / "mask.png").is_file()
    assert "(48, 64)" in capsys.readouterr().out
