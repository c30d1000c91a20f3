"""A model folder opened for an engine: chosen, converted once, checked, refused."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from exfuse import packages
from exfuse.errors import CheckpointError, ConfigError
from exfuse.export import open as opening
from exfuse.export import trace
from exfuse.export.formats import EXPORT_FORMATS, format_of
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.inference import tta
from exfuse.inference.engines.base import Precision
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.predictor import Predictor
from support.written import NETWORKS, Written, info_of, pictures


def test_a_program_without_averaging_is_read_again(tmp_path: Path):
    written = Written(NETWORKS["baseline"], tmp_path / "model")
    images = pictures((1, 70, 90))
    assert (ProgramEngine(written.write(".pt2")).labels(images) == written.network.labels(images)).mean() > 0.999


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_scores_that_are_not_finite_are_refused(engine: str, tmp_path: Path):
    written = Written(NETWORKS["baseline"], tmp_path / "model")
    head = [module for module in written.model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(head.weight, 3e38)  # finite, as everything that is read must be
    save_pretrained(written.folder, written.model, written.info.to_json(), "")
    predictor = Predictor.from_pretrained(written.folder, engine, "fp32")
    with pytest.raises(CheckpointError, match="finite"):
        predictor.logits(pictures((1, 64, 64))[0])
    if engine == "torch":
        with pytest.raises(CheckpointError, match="finite"):
            predictor(pictures((1, 64, 64))[0])


# With a head that is one convolution, without one, with a convolution and no averaging, and with neither.
@pytest.mark.parametrize(
    "info",
    [
        NETWORKS["stride4"],
        pytest.param(info_of(decoder="stride4"), marks=pytest.mark.nightly),
        pytest.param(info_of(decoder="stride4", decoder_width=8, dap_window=1), marks=pytest.mark.nightly),
        pytest.param(NETWORKS["baseline"], marks=pytest.mark.nightly),
    ],
    ids=["narrow", "wide", "single", "baseline"],
)
def test_interpolated_scores_are_not_rounded_to_bfloat16(info: ModelMetadata, tmp_path: Path):
    written = Written(info, tmp_path / "model")
    converted = written.write(".xml")
    layers = ElementTree.parse(converted).iter("layer")  # noqa: S314 - our own
    marked = [layer for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None]
    assert [layer.get("type") for layer in marked].count("Interpolate") == 1
    assert [layer.get("type") for layer in marked].count("TopK") == 16  # the kinds of pixels between cells
    channels = [layer.findall("output/port/dim")[1].text for layer in marked if layer.get("type") == "Convolution"]
    assert set(channels) <= {"5"}, "features are not computed in float32"
    engine = Predictor.from_pretrained(converted, precision="bf16").engine
    scores = torch.from_numpy(engine.scores(pictures((1, 120, 160))))
    assert (scores == scores.bfloat16()).float().mean() < 0.1
    best = scores.topk(2, dim=1).values
    assert (best[:, 0] != best[:, 1]).all()
    corners = torch.from_numpy(engine.scores(pictures((8, 40, 40))))[..., 0, 0]  # as they were before interpolation
    assert (corners == corners.bfloat16()).float().mean() < 0.5


# torch says so of itself, while it imports its compiler.
@pytest.mark.nightly  # compiling takes long
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_the_compiled_engine_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = Written(NETWORKS["baseline"], tmp_path / "model")
    engine = Predictor.from_pretrained(written.folder, "compile", "fp32").engine
    images = pictures((1, 70, 90))
    assert (engine.labels(images) == written.network.labels(images)).mean() > 0.999
    monkeypatch.setattr("exfuse.inference.engines.torch_compile.SIZES", 1)
    with pytest.raises(ConfigError, match=r"60, 90.*\b1\b"):
        engine.labels(pictures((1, 60, 90)))


@pytest.mark.nightly  # compiling takes long
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_engine_gives_the_networks_scores(name: str, precision: Precision, tmp_path: Path):
    written = Written(NETWORKS[name], tmp_path / "model")
    engine = Predictor.from_pretrained(written.folder, "compile", precision).engine
    images = pictures((1, 70, 90))
    expected = written.network.scores(images)
    limit, equal = (1e-4, 0.999) if precision == "fp32" else (0.1, 0.95)  # of noise, by random weights
    assert np.abs(engine.scores(images) - expected).max() <= limit * np.abs(expected).max()
    assert (engine.labels(images) == expected.argmax(axis=1)).mean() > equal


def test_auto_takes_the_fastest_that_is_installed_and_can_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Written(NETWORKS["baseline"], tmp_path / "model").folder
    monkeypatch.setattr(opening, "GPU_DRIVERS", ())
    assert Predictor.from_pretrained(folder).engine.name == "openvino"
    with monkeypatch.context() as card:
        card.setattr(opening, "_has_gpu", lambda: True)
        for has_bf16, precision in ((True, "bf16"), (False, "fp32")):
            card.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
            engine = Predictor.from_pretrained(folder).engine
            assert (engine.name, engine.precision) == ("torch, folded", precision)
            assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in engine.model.modules())
        assert Predictor.from_pretrained(folder, precision="fp32").engine.precision == "fp32"
    ema_model = Predictor.from_pretrained(folder, augmentation=tta.TestTimeAugmentation(flip=True))
    assert ema_model.engine.name == "torch, folded"
    assert Predictor.from_pretrained(folder, precision="bf16").engine.precision == "bf16"
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert Predictor.from_pretrained(folder).engine.name == "onnxruntime"
    assert Predictor.from_pretrained(folder, precision="bf16").engine.name == "torch, folded"
    with pytest.raises(ConfigError, match=r"^openvino .*'exfuse\[openvino\]'"):
        Predictor.from_pretrained(folder, "openvino")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert Predictor.from_pretrained(folder).engine.name == "torch, folded"
    with pytest.raises(ConfigError, match=r"^onnxruntime .*'exfuse\[onnx\]'"):
        Predictor.from_pretrained(folder, "onnxruntime")


@pytest.mark.parametrize(("unit", "precision"), [("amx_bf16", "bf16"), ("bf16", "bf16"), ("avx2", "fp32")])
def test_compiled_code_is_in_bf16_where_the_processor_has_units_for_it(
    unit: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(opening, "GPU_DRIVERS", ())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True, "avx512_bf16": False})
    folder = Written(NETWORKS["baseline"], tmp_path / "model").folder
    assert Predictor.from_pretrained(folder, "compile").engine.precision == precision


def test_what_an_engine_cannot_do_is_refused(tmp_path: Path):
    folder = Written(NETWORKS["baseline"], tmp_path / "model").folder
    with pytest.raises(ConfigError, match=r"openvino .*scales.*torch"):
        Predictor.from_pretrained(folder, "openvino", augmentation=tta.TestTimeAugmentation(flip=True))
    with pytest.raises(ConfigError, match=r"onnxruntime .*fp32"):
        Predictor.from_pretrained(folder, "onnxruntime", "bf16")
    (tmp_path / "a.txt").write_text("no model")
    with pytest.raises(CheckpointError, match=r"a\.txt: .*\.xml.*\.onnx"):
        Predictor.from_pretrained(tmp_path / "a.txt")


def test_a_model_is_converted_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    folder = Written(NETWORKS["baseline"], tmp_path / "model").folder
    image = pictures((1, 64, 64))[0]
    labels = Predictor.from_pretrained(folder, "openvino", "fp32")(image).labels
    monkeypatch.setitem(EXPORT_FORMATS, "openvino", EXPORT_FORMATS["openvino"]._replace(write=None))
    np.testing.assert_array_equal(Predictor.from_pretrained(folder, "openvino", "fp32")(image).labels, labels)
    torch.manual_seed(1)
    info = NETWORKS["baseline"]
    save_pretrained(folder, build_model(info), info.to_json(), "")
    with pytest.raises(CheckpointError, match=str(tmp_path / "cache" / "xml")):
        Predictor.from_pretrained(folder, "openvino")


@pytest.mark.parametrize(
    ("engine", "suffixes"),
    [("openvino", (".xml", ".bin")), pytest.param("onnxruntime", (".onnx",), marks=pytest.mark.nightly)],
)
def test_a_damaged_converted_model_is_converted_anew(
    engine: str, suffixes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXFUSE_CACHE", str(tmp_path / "cache"))
    Written(NETWORKS["baseline"], tmp_path / "model")
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
