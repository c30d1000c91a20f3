"""Backbones, losses, data formats, engines and export formats of others: trained, saved, folded, exported, opened."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import exfuse
from exfuse import losses
from exfuse.data.datasets import open_dataset
from exfuse.data.formats import FORMATS
from exfuse.data.formats.base import FoundImage, OnMissing
from exfuse.errors import ConfigError, DataError
from exfuse.export.formats import EXPORT_FORMATS, torch_export
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.inference.engines import ENGINES
from exfuse.models.backbones import BACKBONES
from exfuse.models.backbones.base import Backbone, ConvNormPair, Features, pairs_by_name
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train
from support.tiny_run import read_metrics

METADATA = ModelMetadata(
    name="gcn_tiny",
    options=options_of("gcn_tiny", {"decoder": "stride4"}),
    class_names=("a", "b", "c"),
    palette=((0, 0, 0), (9, 9, 9), (99, 9, 9)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


class Pooled(Backbone):
    """Four convolutions with their norms, each behind a pooling."""

    channels = (8, 8, 12, 16)
    is_restorable = True

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in itertools.pairwise(widths)
        )

    def forward(self, images: Tensor) -> Features:
        features, x = [], images
        for factor, stage in zip((4, 2, 2, 2), self.stages, strict=True):
            x = stage(nn.functional.avg_pool2d(x, factor))
            features.append(x)
        return features[0], features[1], features[2], features[3]

    def conv_norm_pairs(self) -> Iterator[ConvNormPair]:
        return pairs_by_name(self)


def tversky(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """One minus the mean Tversky index with weights 0.3 and 0.7 (Salehi et al., 2017)."""
    labelled = (target != ignore_index)[:, None]
    truth = nn.functional.one_hot(target.masked_fill(~labelled[:, 0], 0), logits.shape[1]).movedim(-1, 1) * labelled
    found = logits.softmax(dim=1) * labelled
    hits, false, missed = (
        part.sum(dim=(0, 2, 3)) for part in (found * truth, found * (1 - truth), (1 - found) * truth)
    )
    return 1 - (hits / (hits + 0.3 * false + 0.7 * missed).clamp(min=1e-12)).mean()


class Suffixed(exfuse.DatasetFormat):
    """`train/x.jpg` with `train/x_mask.png` in the same folder."""

    name = "suffixed"
    contents = "{split}/NAME.jpg with {split}/NAME_mask.png"

    def detect(self, root: Path, split: str) -> bool:
        return any((root / split).glob("*_mask.png"))

    def images(self, root: Path, split_source: str, missing: OnMissing) -> Iterator[FoundImage]:
        for path in sorted((root / split_source).glob("*.jpg")):
            yield FoundImage(path.stem, path, f"{path.stem}_mask")

    def masks(self, root: Path, split_source: str) -> Path:
        return root / split_source


@pytest.fixture
def registered() -> Iterator[None]:
    """Registers both for one test."""
    exfuse.register_backbone("pooled", Pooled)
    exfuse.register_loss("outside_tversky", tversky)
    exfuse.register_format(Suffixed())
    yield
    del BACKBONES["pooled"], losses.LOSSES["outside_tversky"], FORMATS["suffixed"]


def suffixed(pack: Path, folder: Path) -> Path:
    """Returns the drawn scenes as `Suffixed` has them."""
    root = folder / "suffixed"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for entry in open_dataset(pack, split).entries:
            (root / split / f"{entry.name}.jpg").symlink_to(entry.image)
            (root / split / f"{entry.name}_mask.png").symlink_to(entry.mask)
    (root / "classes.json").symlink_to(pack / "classes.json")
    return root


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["exfuse_pooled", "gcn_pooled"])
def test_what_others_register_trains_is_saved_loaded_folded_and_exported(name: str, pack: Path, tmp_path: Path) -> None:
    assert name in exfuse.list_models()
    data = suffixed(pack, tmp_path)
    overrides = [
        f"data.root={data}", f"output={tmp_path / 'run'}", f"model.name={name}", "loss.outside_tversky=0.5", "epochs=2",
        "batch_size=4", "data.crop_size=[64, 64]", "evaluate_every=2", "log_every=1", "model.decoder_width=8",
        "optimizer.warmup_steps=1", "precision=fp32",
    ]  # fmt: skip
    config = load_config("demo", overrides)
    assert config.loss.terms["outside_tversky"] == 0.5
    train(config, resume=False, console=Console(quiet=True))
    train(config, resume=True, console=Console(quiet=True))  # its recorded recipe is read, and nothing is left to do
    assert len(list(read_metrics(tmp_path / "run"))) >= 6
    model, info = load_pretrained(tmp_path / "run" / "model")
    assert isinstance(model.backbone, Pooled)
    folded = exfuse.fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(folded(images).logits, model(images).logits, rtol=1e-3, atol=1e-4)
    dataset = open_dataset(data, "val")
    assert len(dataset) == len(open_dataset(pack, "val")) > 1
    exfuse.export_model(tmp_path / "run" / "model", tmp_path / "onnx", "onnx", data=data, limit=1)
    predictor = exfuse.Predictor.from_pretrained(tmp_path / "onnx" / "model.onnx")
    expected = exfuse.Predictor.from_pretrained(tmp_path / "run" / "model", engine="torch")
    assert np.mean(predictor(dataset[1].image).labels == expected(dataset[1].image).labels) > 0.999
    assert info.name == name


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.outside_tversky=-1", "loss.outside_tversky"),
        ("loss.outside_tvresky=1", "'outside_tvresky'.*'outside_tversky'"),
    ],
)
def test_the_weight_of_a_registered_loss_is_checked_as_any_other(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("demo", [override])


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["tiny", "pooled", "Pooled", "a-b", ""])
def test_a_backbone_gets_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="backbone"):
        exfuse.register_backbone(name, Pooled)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["dice", "outside_tversky", "ohem", "Focal"])
def test_a_loss_gets_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="loss"):
        exfuse.register_loss(name, tversky)


@pytest.mark.usefixtures("registered")
def test_a_format_gets_a_name_of_its_own_and_is_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suffixed"):
        exfuse.register_format(Suffixed())
    with pytest.raises(DataError, match=r"train/NAME_mask\.png"):
        open_dataset(tmp_path, "train")


@pytest.fixture
def program_engine() -> Iterator[None]:
    """Registers torch.export's programs as a format that an engine computes."""
    exfuse.register_export_format(exfuse.ExportFormat("program", ".prog", torch_export.write, packages=("torch",)))

    def load(path: Path, precision: str | None, augmentation: object) -> tuple[ProgramEngine, ModelMetadata]:
        return ProgramEngine(path), METADATA

    exfuse.register_engine(exfuse.EngineSpec("program", load, suffix=".prog", precisions=("fp32",)))
    yield
    del ENGINES["program"], EXPORT_FORMATS["program"]


@pytest.mark.usefixtures("program_engine")
def test_an_engine_and_a_format_of_others_export_and_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    save_pretrained(tmp_path / "model", build_model(METADATA), METADATA.to_json(), "")
    exfuse.export_model(tmp_path / "model", tmp_path / "export", "program")
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    expected = exfuse.Predictor.from_pretrained(tmp_path / "model", "torch")(image).labels
    for source in (tmp_path / "export", tmp_path / "export" / "model.prog", tmp_path / "model"):
        predictor = exfuse.Predictor.from_pretrained(source, "program")
        assert (predictor(image).labels == expected).mean() > 0.999
    assert list((tmp_path / "cache" / "prog").rglob("model.prog"))
    with pytest.raises(ConfigError, match=r"program .*fp32"):
        exfuse.Predictor.from_pretrained(tmp_path / "model", "program", "bf16")
    for name, suffix, said in (("program", None, "'program'"), ("auto", None, "'auto'"), ("new", ".xml", "openvino")):
        with pytest.raises(ConfigError, match=said):
            exfuse.register_engine(exfuse.EngineSpec(name, ProgramEngine, suffix))
    for name, suffix in (("onnx", ".new"), ("new", ".onnx")):
        with pytest.raises(ConfigError, match=rf"'{name}'.*{re.escape(suffix)}"):
            exfuse.register_export_format(exfuse.ExportFormat(name, suffix, torch_export.write))


def test_an_engine_without_a_format_computes_its_files_only(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", build_model(METADATA), METADATA.to_json(), "")
    exfuse.register_engine(exfuse.EngineSpec("lonely", lambda *_: None, suffix=".lonely"))
    try:
        with pytest.raises(ConfigError, match=r"model: .*lonely .*\.lonely"):
            exfuse.Predictor.from_pretrained(tmp_path / "model", "lonely")
    finally:
        del ENGINES["lonely"]


PLUGIN = """
import exfuse
exfuse.register_loss("hinge", lambda logits, target, ignore_index: (1 - logits).relu().mean())
"""


@pytest.mark.parametrize(("code", "said"), [(PLUGIN, "loss.hinge"), ("import gone_module", "gone_module")])
def test_an_installed_package_registers_for_the_command_line(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "hinge_plugin.py").write_text(code)
    info = tmp_path / "hinge_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hinge-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[exfuse.plugins]\nhinge = hinge_plugin\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "exfuse", "train", "demo", "loss.hinge=-1"]
    outcome = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert outcome.returncode == 1
    assert said in outcome.stderr
    assert "unknown key" not in outcome.stderr
    assert outcome.stderr.count("\n") == 1


class Misstated(Pooled):
    channels = (8, 8, 12, 17)

    def __init__(self) -> None:
        super().__init__()
        self.stages[3] = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1))


class Unstated(Backbone):
    def forward(self, images: Tensor) -> Features:
        raise NotImplementedError


@pytest.mark.parametrize(("make", "said"), [(Misstated, r"\(16, 2, 2\).*\(17, 2, 2\)"), (Unstated, "channels")])
def test_a_backbone_with_other_features_than_it_states_is_refused(make: type[Backbone], said: str) -> None:
    exfuse.register_backbone("misstated", make)
    try:
        with pytest.raises(ConfigError, match=f"exfuse_misstated: {make.__name__} .*{said}"):
            exfuse.create_model("exfuse_misstated", num_classes=3)
    finally:
        del BACKBONES["misstated"]
