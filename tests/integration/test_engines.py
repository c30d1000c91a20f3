"""Every engine against the network it was made from (N2)."""

import subprocess
import sys

import numpy as np
import pytest

from exfuse.errors import CheckpointError
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.export.verify import TIE
from exfuse.inference.engines.base import Engine
from exfuse.predictor import Predictor
from support.written import NETWORKS, Written, pictures

SHAPES = [(1, 64, 64), (3, 100, 71), (1, 257, 511), (1, 1024, 96), (2, 96, 1024)]
SMALL = [(1, 1, 1), (2, 5, 40), (1, 32, 32)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {name: Written(NETWORKS[name], tmp_path_factory.mktemp(name) / "model") for name in ("full", "stride4")}


@pytest.fixture(params=["full", "stride4"])
def written(request: pytest.FixtureRequest, networks: dict[str, Written]) -> Written:
    return networks[request.param]


@pytest.fixture(params=[".xml", ".onnx", ".pt2"])
def engine(request: pytest.FixtureRequest, written: Written) -> Engine:
    return written.open(request.param)


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


def test_n3_bfloat16_changes_few_labels(written: Written):
    engine = Predictor.from_pretrained(written.write(".xml"), precision="bf16").engine
    images = pictures((1, 120, 160))
    assert (engine.labels(images) == written.network.labels(images)).mean() >= 0.98  # of noise, by random weights


@pytest.mark.parametrize(("suffix", "library"), [(".xml", "OpenVINO"), (".onnx", "ONNX Runtime")])
def test_what_a_library_cannot_compute_is_said_with_the_file(suffix: str, library: str, networks: dict[str, Written]):
    path = networks["stride4"].write(suffix)
    engine = Predictor.from_pretrained(path).engine
    with pytest.raises(CheckpointError, match=rf"model{suffix}: .*{library}.*\(.+\)"):
        engine.labels(np.zeros((1, 40, 40), np.uint8))  # without colours


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
        with pytest.raises(CheckpointError, match=rf"model{suffix}: .*\b{classes} scores "):
            predictor.logits(images[0])


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
