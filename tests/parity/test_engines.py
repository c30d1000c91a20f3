"""Every engine against the network it was made from (N2)."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openvino
import pytest
import torch
from torch.export import ExportedProgram

from exfuse import packages
from exfuse.atomic_io import digest_of
from exfuse.errors import CheckpointError, ConfigError
from exfuse.export import open as opening
from exfuse.export.formats import EXPORT_FORMATS, format_of
from exfuse.export.formats import openvino as openvino_format
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.export.openvino_passes.early_argmax import choose_early
from exfuse.export.trace import export_program
from exfuse.export.verify import TIE
from exfuse.inference import tta
from exfuse.inference.engines.base import Engine, Precision
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.manifest import write_manifest
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.predictor import Predictor

SHAPES = [(1, 64, 64), (3, 100, 71), (1, 257, 511), (1, 1024, 96), (2, 96, 1024)]
SMALL = [(1, 1, 1), (2, 5, 40), (1, 32, 32)]


def info_of(name: str = "exfuse_tiny", **options: object) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        options=options_of(name, options),
        class_names=("a", "b", "c", "d", "e"),
        palette=((0, 0, 0), (50, 0, 0), (100, 0, 0), (150, 0, 0), (200, 0, 0)),
        ignore_index=255,
        image_mean=(0.4, 0.5, 0.6),
        image_std=(0.2, 0.25, 0.3),
    )


NETWORKS = {
    "full": info_of(decoder_width=8),
    "stride4": info_of(decoder="stride4", decoder_width="narrow"),
    "baseline": info_of("gcn_tiny", decoder="stride4"),
}


class Written:
    """A network with random weights, and the folder of its model."""

    def __init__(self, info: ModelMetadata, folder: Path) -> None:
        torch.manual_seed(0)
        model = build_model(info).eval()
        # Running statistics of a fresh network are trivial; these are not.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        self.folder, self.model, self.info = folder, model, info
        self.network = TorchEngine(model, info)
        self.program: ExportedProgram | None = None
        self.opened: dict[str, Engine] = {}
        save_pretrained(folder, model, info.to_json(), "")

    def write(self, suffix: str) -> Path:
        """Writes the network for an engine, traced once for all of them."""
        path = self.folder.with_name(f"written_{suffix[1:]}") / f"model{suffix}"
        if not path.is_file():
            path.parent.mkdir()
            self.program = self.program or export_program(self.model, self.info)
            format_of(suffix).write(self.program, self.info, path)
            write_manifest(path.parent, {file.name: digest_of(file) for file in path.parent.iterdir()})
        return path

    def open(self, suffix: str) -> Engine:
        """Returns the engine of a written network, opened once."""
        if suffix not in self.opened:
            path = self.write(suffix)
            is_program = suffix == ".pt2"
            engine = ProgramEngine(path) if is_program else Predictor.from_pretrained(path, precision="fp32").engine
            self.opened[suffix] = engine
        return self.opened[suffix]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {name: Written(NETWORKS[name], tmp_path_factory.mktemp(name) / "model") for name in ("full", "stride4")}


@pytest.fixture(params=["full", "stride4"])
def written(request: pytest.FixtureRequest, networks: dict[str, Written]) -> Written:
    return networks[request.param]


@pytest.fixture(params=[".xml", ".onnx", ".pt2"])
def engine(request: pytest.FixtureRequest, written: Written) -> Engine:
    return written.open(request.param)


def pictures(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [*SHAPES, *SMALL], ids=str)
def test_n2_scores_and_labels_are_the_networks(written: Written, engine: Engine, shape: tuple[int, int, int]):
    images = pictures(shape)
    if isinstance(engine, ProgramEngine) and min(shape[1:]) <= 32:
        with pytest.raises(AssertionError, match=">= 33"):  # as docs/deploy.md says
            engine.labels(images)
        return
    expected, found, labels = written.network.scores(images), engine.scores(images), engine.labels(images)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert (labels.shape, labels.dtype) == (shape, np.uint8)
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-4 * largest
    best = np.sort(expected, axis=1)
    sure = best[:, -1] - best[:, -2] > TIE * largest
    assert sure.any() or min(shape[1:]) == 1
    np.testing.assert_array_equal(labels[sure], expected.argmax(axis=1)[sure])
    np.testing.assert_array_equal(labels, found.argmax(axis=1))


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


def test_n3_bfloat16_changes_few_labels(written: Written):
    engine = Predictor.from_pretrained(written.write(".xml"), precision="bf16").engine
    images = pictures((1, 120, 160))
    assert (engine.labels(images) == written.network.labels(images)).mean() >= 0.98  # of noise, by random weights


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


class Chooses(torch.nn.Module):
    """The end of a graph, of scores in the place of images."""

    def __init__(self, enlarge: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.enlarge = enlarge

    def forward(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.enlarge(scores)
        return scores.argmax(dim=1).to(torch.uint8), scores * 1


def shuffled(scores: torch.Tensor) -> torch.Tensor:
    """Makes four scores of each, as a convolution does, the last column on its own, and shuffles them."""
    weights = torch.eye(scores.shape[1]).repeat_interleave(4, dim=0)[..., None, None]
    parts = [torch.nn.functional.conv2d(part, weights) for part in (scores[..., :-1], scores[..., -1:] * 2)]
    return torch.nn.functional.pixel_shuffle(torch.cat(parts, dim=3), 2)


ENLARGED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "not": lambda scores: scores,
    "twice": lambda scores: torch.nn.functional.interpolate(scores, scale_factor=2.0, mode="bilinear"),
    "four times": lambda scores: torch.nn.functional.interpolate(scores, scale_factor=4.0, mode="bilinear"),
    "shuffled": shuffled,
}


@pytest.mark.parametrize("enlarged", ENLARGED)
@pytest.mark.parametrize("classes", [2, 255])
def test_labels_in_openvino_are_the_first_largest_class(classes: int, enlarged: str):
    scores = torch.randint(0, 4, (2, classes, 9, 20)).float() - 2  # several are the largest
    chooses = Chooses(ENLARGED[enlarged])
    model = openvino_format.convert(torch.export.export(chooses, (scores,)))
    choose_early(model, classes)
    assert any(operation.get_type_name() == "DepthToSpace" for operation in model.get_ops()) == (enlarged != "not")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(compiled(scores.numpy())["labels"], chooses(scores)[0].numpy())
    scores[0, :, 0, 0], scores[1, 1, 0, 0] = torch.nan, torch.inf
    labels = compiled(scores.numpy())["labels"]
    assert labels.max() < classes
    if enlarged == "not":
        assert labels[1, 0, 0] == 1


@pytest.mark.parametrize(("suffix", "library"), [(".xml", "OpenVINO"), (".onnx", "ONNX Runtime")])
def test_what_a_library_cannot_compute_is_said_with_the_file(suffix: str, library: str, tmp_path: Path):
    path = Written(NETWORKS["baseline"], tmp_path / "model").write(suffix)
    engine = Predictor.from_pretrained(path).engine
    with pytest.raises(CheckpointError, match=rf"model{suffix}: .*{library}.*\(.+\)"):
        engine.labels(np.zeros((1, 40, 40, 4), np.uint8))


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_what_an_exported_file_gives_is_checked(suffix: str, networks: dict[str, Written]):
    path, images = networks["stride4"].write(suffix), pictures((1, 40, 50))
    predictor = Predictor.from_pretrained(path)
    labels, scores, classes = predictor.engine.labels(images), predictor.engine.scores(images), 5  # of `info_of`
    for wrong in (labels + np.uint8(classes), labels[:, 1:], labels.astype(np.int64), scores):
        predictor.engine._run = lambda *_, wrong=wrong: wrong
        with pytest.raises(CheckpointError, match=rf"model{suffix}: .*one of {classes} "):
            predictor(images[0])
    for wrong in (scores[:, 1:], scores[..., 1:], scores.astype(np.float16), labels):
        predictor.engine._run = lambda *_, wrong=wrong: wrong
        with pytest.raises(CheckpointError, match=rf"model{suffix}: .*score .*{classes} "):
            predictor.logits(images[0])


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


AFTER_OPENVINO = """
import faulthandler, gc, signal, sys
import numpy as np
faulthandler.enable()  # which gives the process a signal stack, as pytest does
from exfuse.predictor import Predictor
predictor = Predictor.from_pretrained(sys.argv[1])
predictor(np.zeros((64, 64, 3), np.uint8))
del predictor
gc.collect()
signal.signal(signal.SIGINT, lambda number, frame: print("interrupted"))
signal.raise_signal(signal.SIGINT)
"""


def test_control_c_after_openvino_is_handled(networks: dict[str, Written]):
    command = [sys.executable, "-c", AFTER_OPENVINO, str(networks["stride4"].write(".xml"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
