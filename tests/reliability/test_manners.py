"""Nothing talks, nothing is left lying about, nothing of the caller's process stays changed, and memory is flat."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import typer

from exfuse.cli.app import GROUPS, build_app
from exfuse.data.classes import VOC_NAMES, voc_palette
from exfuse.data.synthetic import SCENE_CLASSES
from exfuse.models.backbones import resnet
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
CACHED = {".lock", "decoded", "inductor", "matplotlib", "onnx", "xml"}
TINY = (
    "epochs=1", "batch_size=4", "evaluate_every=1", "checkpoint_every=1000", "log_every=1", "data.crop_size=[64, 64]",
    "optimizer.name=adamw", "optimizer.learning_rate=0.003", "optimizer.warmup_steps=1",
)  # fmt: skip
SMALL = ("model.name=gcn_tiny", "model.decoder_width=narrow", "model.decoder=stride4", "model.gcn_kernel=3")


def description(names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]) -> ModelMetadata:
    options = options_of("gcn_tiny", {"decoder": "stride4"})
    return ModelMetadata("gcn_tiny", options, names, palette, 255, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    info = description(SCENE_CLASSES.names, SCENE_CLASSES.palette)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(folder, build_model(info), info.to_json(), "")
    return folder


class Watched:
    """Processes that cannot leave the machine, in empty homes and temporary folders."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux" or (compiler := shutil.which("g++") or shutil.which("gcc")) is None:
            pytest.skip("watching takes Linux and a C compiler")
        self.log, self.cache, self.out = folder / "log", folder / "cache", folder / "out"
        self.empty = {name: folder / name for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "PWD")}
        for path in (self.out, *self.empty.values()):
            path.mkdir()
        library = folder / "watched.so"
        subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, HERE / "watched.c", "-ldl"], check=True)
        kept = {name: os.environ[name] for name in ("PATH", "CXX") if name in os.environ}
        self.environment = {
            **kept,
            **{name: str(path) for name, path in self.empty.items()},
            "EXFUSE_CACHE": str(self.cache),
            "LD_PRELOAD": str(library),
            "WATCHED_LOG": str(self.log),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(SOURCE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *words: object) -> None:
        command = [sys.executable, *map(str, words)]
        subprocess.run(command, env=self.environment, cwd=self.empty["PWD"], check=True, timeout=1200)

    def noticed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def assert_clean(self, written: set[str]) -> None:
        assert self.noticed() == []
        for name, folder in self.empty.items():
            assert [str(path) for path in folder.rglob("*")] == [], name
        assert {path.name for path in self.out.iterdir()} == written
        assert {path.name for path in self.cache.iterdir()} <= CACHED


@pytest.fixture
def watched() -> Iterator[Watched]:
    with TemporaryDirectory() as folder:  # pytest's own paths are too long for the sockets of data workers
        yield Watched(Path(folder))


def run_commands(watched: Watched, commands: list[list[object]], written: set[str]) -> None:
    file = watched.out.with_name("commands.json")
    file.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    watched.run(HERE / "every_command.py", file)
    watched.assert_clean(written)


def every_command(out: Path, model: Path, pack: Path, photos: Path, voc: Path) -> dict[str, list[list[object]]]:
    """Returns calls of every command, by its name; what they write lies in `out`."""
    info = description(tuple(VOC_NAMES), tuple(voc_palette(21)))
    save_pretrained(voc.with_name("of_voc"), build_model(info), info.to_json(), "")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2009_99\n")
    torch.save(resnet.tiny().state_dict(), voc.with_name("tiny.pth"))
    photo = next((pack / "images").glob("val_*"))
    predict = [
        ["predict", model, photo, "--engine", engine, "-o", out / f"by_{engine}"]
        for engine in ("torch", "openvino", "onnxruntime", "auto")
    ]
    checked = ("--data", pack, "--limit", "1")
    exports = [
        ["export", model, "--format", name, "-o", out / name, *checked] for name in ("torch-export", "onnx", "openvino")
    ]
    return {
        "train": [["train", "demo", *TINY, *SMALL, f"data.root={pack}", "data.workers=1", f"output={out / 'run'}"]],
        "pretrain": [
            ["pretrain", "imagenette_resnet18", *TINY, "batch_size=6", "precision=fp32", "data.resize=64",
             "model.backbone=tiny", f"data.root={photos}", f"output={out / 'pretrained'}"],
        ],
        "evaluate": [["evaluate", out / "run" / "model", pack, "--metrics", "all", "-o", out / "scores.json"]],
        "compare": [["compare", model, model, pack, "--show", "1", "-o", out / "comparison"]],
        "export": exports,
        "predict": [*predict, ["predict", out / "onnx", photo, "-o", out / "of_onnx"]],
        "submit": [["submit", "voc", voc.with_name("of_voc"), voc, "-o", out / "results.tgz"]],
        "models": [["models"]],
        "recipes": [["recipes"], ["recipes", "demo"]],
        "demo": [["demo", "--recipe", out / "run" / "config.yaml", "-o", out / "demo"]],
        "doctor": [["doctor", pack]],
        "data prepare": [["data", "prepare", "voc", voc, "--partial", "-o", out / "prepared"]],
        "checkpoint verify": [["checkpoint", "verify", out / "run"]],
        "weights import": [
            ["weights", "import", voc.with_name("tiny.pth"), "--backbone", "tiny", "-o", out / "tiny.safetensors"]
        ],
    }  # fmt: skip


def test_no_command_talks_or_leaves_anything_elsewhere(
    watched: Watched, model: Path, pack: Path, photos: Path, voc: Path
) -> None:
    commands = every_command(watched.out, model, pack, photos, voc)
    known = typer.main.get_command(build_app()).commands
    names = {f"{name} {sub}" for name in GROUPS for sub in known[name].commands} | (known.keys() - set(GROUPS))
    assert commands.keys() == names - {"ablate"}  # which is below
    written = {"run", "pretrained", "scores.json", "comparison", "torch-export", "onnx", "openvino", "results.tgz"}
    written |= {"demo", "prepared", "tiny.safetensors", "of_onnx"}
    written |= {f"by_{engine}" for engine in ("torch", "openvino", "onnxruntime", "auto")}
    run_commands(watched, [command for calls in commands.values() for command in calls], written)


@pytest.mark.nightly  # what takes longest
def test_neither_int8_nor_an_ablation_nor_compiled_code_talks(watched: Watched, model: Path, pack: Path) -> None:
    int8 = ["export", model, "--format", "openvino", "--precision", "int8", "--data", pack, "-o", watched.out / "int8"]
    narrow = ("model.name=gcn_tiny", "model.decoder_width=narrow", "model.gcn_kernel=3", "seeds=1")
    ablate = ["ablate", "paper", *TINY, *narrow, f"data.root={pack}", f"output={watched.out / 'ablation'}"]
    compiled = [
        "predict",
        model,
        next((pack / "images").glob("*")),
        "--engine",
        "compile",
        "-o",
        watched.out / "compiled",
    ]
    run_commands(watched, [int8, ablate, compiled], {"int8", "ablation", "compiled"})


CONVERTS_AFTERWARDS = """
import sys
from pathlib import Path
consent = Path.home() / "intel" / "openvino_telemetry"
consent.parent.mkdir()
consent.write_text("0")
import openvino
consent.unlink()
consent.parent.rmdir()
import exfuse
exfuse.Predictor.from_pretrained(sys.argv[1], "openvino")
"""


def test_what_would_talk_is_noticed_and_does_not_where_openvino_was_imported_before(
    watched: Watched, model: Path
) -> None:
    watched.run("-c", CONVERTS_AFTERWARDS, model)
    watched.assert_clean(set())
    watched.run("-c", "import openvino")
    assert any("analytics" in line for line in watched.noticed()), watched.noticed()
    assert (watched.empty["HOME"] / "intel").is_dir()


SNAPSHOTS = """
import gc, logging, os, random, signal, sys, warnings
import numpy, torch, PIL.Image
from pathlib import Path

def snapshot():
    gc.collect()
    return {
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "random": random.getstate(),
        "numpy": str(numpy.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "roots": list(logging.root.handlers),
        "streams": (sys.stdout, sys.stderr),
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "descriptors": sorted(Path(f"/proc/self/fd/{number}").readlink().name for number in OPEN()),
    }

def OPEN():
    return [number for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]

LOGGERS = ("root", "torch", "torch.onnx", "onnxscript", "nncf", "openvino", "matplotlib", "PIL")

def check(what):
    after = snapshot()
    for name, value in before.items():
        assert after[name] == value, (what, name, value, after[name])

before = snapshot()
import exfuse
check("import")
image = numpy.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=numpy.uint8)
model, out = sys.argv[1:3]
for engine in sys.argv[3:]:
    predictor = exfuse.Predictor.from_pretrained(model, engine)
    check("opening " + engine)
    predictor(image)
    predictor.logits(image)
    del predictor
    check(engine)
from exfuse.export.formats import EXPORT_FORMATS
check("importing export")
from PIL import Image
photo = Path(out) / "photo.png"
Image.fromarray(image).save(photo)
for name in EXPORT_FORMATS:
    exfuse.export_model(model, Path(out) / name, name, images=photo)
    check("export " + name)
"""


@pytest.mark.nightly  # a minute each
@pytest.mark.parametrize(
    "engines",
    [("torch", "openvino", "onnxruntime"), ("compile",)],
    ids=["those that do not compile", "compile"],
)
def test_the_callers_process_is_left_as_it_was(engines: tuple[str, ...], watched: Watched, model: Path) -> None:
    watched.run("-c", SNAPSHOTS, model, watched.out, *engines)
    watched.assert_clean({"photo.png", "torch-export", "onnx", "openvino"})


MEMORY = """
import gc, sys
import numpy as np
import exfuse

predictor, rng, at_first = exfuse.Predictor.from_pretrained(*sys.argv[1:3], "fp32"), np.random.default_rng(0), 0
sizes = rng.integers(16, 129, (8 if sys.argv[2] == "compile" else 10_000, 2))
def used():
    gc.collect()
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
for number in range(10_000):
    if number == 1000:
        at_first = used()
    height, width = sizes[number % len(sizes)]
    predictor(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
print(used() - at_first)
"""


@pytest.mark.nightly  # minutes
@pytest.mark.parametrize("engine", ["torch", "openvino", "onnxruntime", "compile"])
def test_memory_is_flat_over_ten_thousand_images_of_mixed_sizes(engine: str, model: Path) -> None:
    command = [sys.executable, "-c", MEMORY, model, engine]
    grown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3000).stdout
    assert float(grown) <= 16, f"{grown} MB"
