"""Weights, checkpoints and model folders made to run code, to fill the memory or to crash the reader (S1, S2)."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exfuse.atomic_io import digest_of
from exfuse.data.datasets import read_dataset_file
from exfuse.errors import CheckpointError, ConfigError
from exfuse.manifest import MANIFEST, verify_folder, write_manifest
from exfuse.models.backbones import resnet
from exfuse.models.registry import create_model
from exfuse.models.storage.backbone_weights import load_backbone_weights
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE
from exfuse.models.storage.import_weights import import_weights
from exfuse.models.storage.pretrained import load_pretrained
from exfuse.training.checkpoint import LATEST, TrainingState, load_checkpoint, save_checkpoint
from exfuse.training.optim import build_optimizers
from support.faults import mutate
from support.limits import at_most


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


class ExecBomb(Bomb):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def header(content: dict[str, Any], tail: bytes = b"", size: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + tail


def tensor_entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 * 2**20))
    return buffer.getvalue()


MALICIOUS_WEIGHTS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda mark: pickle.dumps(Bomb(mark)),
    "torch zip": lambda mark: torch_file({"weight": Bomb(mark)}),
    "pickle that runs code": lambda mark: pickle.dumps(ExecBomb(mark)),
    "header of 2^63 bytes": lambda mark: header({}, size=2**63),
    "header longer than the file": lambda mark: header({}, size=10**6),
    "overlapping offsets": lambda mark: header(
        {"a": tensor_entry(0, 16, [4]), "b": tensor_entry(8, 24, [4])}, bytes(24)
    ),
    "offsets beyond the end": lambda mark: header({"a": tensor_entry(0, 2**40, [2**38])}, bytes(16)),
    "huge shape": lambda mark: header({"a": tensor_entry(0, 16, [2**62, 4])}, bytes(16)),
    "unknown type": lambda mark: header({"a": tensor_entry(0, 16, [4], "OBJ")}, bytes(16)),
    "deep header": lambda mark: struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "zip bomb": lambda mark: zip_bomb(),
    "numpy of objects": lambda mark: numpy_objects(mark),
}


def torch_file(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def numpy_objects(mark: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", MALICIOUS_WEIGHTS)
def test_s1_malicious_weights_run_nothing_and_are_refused(kind: str, model_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    content = MALICIOUS_WEIGHTS[kind](mark)
    load_pretrained(model_folder)  # once, so that all is loaded that it needs
    (model_folder / WEIGHTS_FILE).write_bytes(content)
    (tmp_path / "backbone.safetensors").write_bytes(content)
    with at_most(seconds=1, megabytes=64):
        with pytest.raises(CheckpointError):
            load_pretrained(model_folder)
        with pytest.raises(CheckpointError):
            load_backbone_weights(resnet.tiny(), tmp_path / "backbone.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("decoder_width", 4000), ("gcn_kernel", 100_001), ("gcn_kernel", 2**40 + 1), ("num_classes", 255)],
)
def test_s1_a_description_of_a_huge_network_takes_no_memory(key: str, value: int, model_folder: Path) -> None:
    content = json.loads((model_folder / CONFIG_FILE).read_text())
    content["architecture"][key] = value
    if key == "num_classes":
        content["id2label"] = {str(index): str(index) for index in range(value)}
        content["palette"] = [[index] * 3 for index in range(value)]
    (model_folder / CONFIG_FILE).write_text(json.dumps(content))
    with at_most(seconds=1, megabytes=64), pytest.raises(CheckpointError, match=str(model_folder)):
        load_pretrained(model_folder)


@pytest.mark.parametrize("kind", MALICIOUS_WEIGHTS)
def test_s1_malicious_checkpoints_run_nothing_and_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    model = create_model("exfuse_tiny", num_classes=2, decoder="stride4", decoder_width=8, gcn_kernel=3)
    optimizers = build_optimizers(model, "sgd", 0.1, 1.0, 0.0, 0.9)
    target = save_checkpoint(tmp_path / "run", model, None, optimizers, TrainingState(1))
    mark = tmp_path / "touched"
    for name in ("model.safetensors", "optimizer_0.safetensors", "state.json"):
        content = (target / name).read_bytes()
        (target / name).write_bytes(MALICIOUS_WEIGHTS[kind](mark))
        with at_most(seconds=1, megabytes=64), pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / "run", model, None, optimizers)
        (target / name).write_bytes(content)
    assert not mark.exists()


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "pickle that calls": lambda mark: torch_file({"weight": Bomb(mark)}),
    "plain pickle": lambda mark: pickle.dumps({"weight": Bomb(mark)}),
    "pickle that runs code": lambda mark: torch_file({"weight": ExecBomb(mark)}),
    "optimizer state that calls": lambda mark: torch_file({"state_dict": {"conv1.weight": Bomb(mark)}}),
    "whole module": lambda mark: torch_file(torch.nn.Linear(2, 2)),
    "no tensors": lambda mark: torch_file({"epoch": 3}),
    "a list": lambda mark: torch_file([torch.zeros(2)]),
    "zip bomb": lambda mark: zip_bomb(),
    "empty": lambda mark: b"",
    "text": lambda mark: b"hello",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_s1_foreign_weights_that_are_more_than_tensors_are_refused(kind: str, tmp_path: Path) -> None:
    mark, source = tmp_path / "touched", tmp_path / "weights.pth"
    source.write_bytes(PICKLES[kind](mark))
    refused = pytest.raises(CheckpointError, match=r"weights\.pth: .*plain tensors")
    with at_most(seconds=20, megabytes=64), refused:  # most of the time goes into torch's start in the child
        import_weights(source, "tiny", tmp_path / "out.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_foreign_weights_of_a_backbone_are_taken(nested: str | None, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = resnet.tiny().state_dict()
    named = {prefix + name: value for name, value in state.items()} | {"fc.weight": torch.zeros(10, 128)}
    source = tmp_path / "weights.pth"
    torch.save(named if nested is None else {nested: named, "epoch": 90, "optimizer": {"lr": 0.1}}, source)
    report = import_weights(source, "tiny", tmp_path / "out.safetensors")
    assert set(report.taken) == set(state)
    assert report.left == ("fc.weight",)
    backbone = resnet.tiny()
    load_backbone_weights(backbone, tmp_path / "out.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_foreign_weights_of_another_backbone_are_refused_by_name(tmp_path: Path) -> None:
    source, output = tmp_path / "weights.pth", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*no such"):
        import_weights(source, "tiny", output)
    state = resnet.tiny().state_dict()
    torch.save({name: value for name, value in state.items() if name != "bn1.bias"}, source)
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*missing keys: bn1\.bias"):
        import_weights(source, "tiny", output)
    torch.save(state | {"bn1.bias": torch.zeros(3)}, source)
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*bn1\.bias \(3,\)"):
        import_weights(source, "tiny", output)
    with pytest.raises(CheckpointError, match=r"backbone 'tinny'.*'tiny'"):
        import_weights(source, "tinny", output)


@pytest.mark.parametrize("module", ["resource", "torch", "safetensors"])
def test_s1_modules_beside_foreign_weights_are_not_imported(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "touched"
    (tmp_path / f"{module}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    torch.save(resnet.tiny().state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    import_weights(Path("weights.pth"), "tiny", tmp_path / "out.safetensors")
    assert not mark.exists()


def test_foreign_weights_that_hold_a_backbone_twice_are_refused(tmp_path: Path) -> None:
    state = resnet.tiny().state_dict()
    two = {
        f"{prefix}{name}": value for prefix in ("student.module.", "module.", "model.") for name, value in state.items()
    }
    torch.save(two, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*'bn1\.[a-z_]+'.*'m[a-z]+\.bn1"):
        import_weights(tmp_path / "weights.pth", "tiny", tmp_path / "out.safetensors")


def test_s1_paths_and_tags_in_descriptions_lead_nowhere(model_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    good = json.loads((model_folder / CONFIG_FILE).read_text())
    for name in ("os.system", "exfuse.models.registry.create_model", "../../exfuse_tiny", "__import__('os')"):
        changed = good | {"architecture": good["architecture"] | {"name": name}}
        (model_folder / CONFIG_FILE).write_text(json.dumps(changed))
        with pytest.raises(CheckpointError):
            load_pretrained(model_folder)
    tagged = f"root: !!python/object/apply:os.system ['touch {mark}']\n"
    (tmp_path / "data.yaml").write_text(tagged)
    with pytest.raises(ConfigError):
        read_dataset_file(tmp_path / "data.yaml")
    assert not mark.exists()


def refused_or_read(action: Callable[[], object], allowed: type[Exception]) -> bool:
    try:
        action()
    except allowed:
        return True
    return False


def mutated_checkpoints(tmp_path: Path, count: int) -> None:
    model = create_model("exfuse_tiny", num_classes=2, decoder="stride4", decoder_width=8, gcn_kernel=3)
    optimizers = build_optimizers(model, "sgd", 0.1, 1.0, 0.0, 0.9)
    target = save_checkpoint(tmp_path / "run", model, None, optimizers, TrainingState(1))
    files = [*sorted(target.iterdir()), tmp_path / "run" / LATEST]
    rng = random.Random(0)
    for trial in range(count):
        path = files[trial % len(files)]
        content = path.read_bytes()
        changed = mutate(content, rng)
        path.write_bytes(changed)
        refused = refused_or_read(lambda: load_checkpoint(tmp_path / "run", model, None, optimizers), CheckpointError)
        assert refused is (changed != content)
        path.write_bytes(content)
    verify_folder(target)


def test_s2_mutated_checkpoints_are_refused(tmp_path: Path) -> None:
    mutated_checkpoints(tmp_path, 2000)


def test_s2_mutated_checkpoints_whose_hashes_were_made_to_fit_are_refused_or_read(tmp_path: Path) -> None:
    model = create_model("exfuse_tiny", num_classes=2, decoder="stride4", decoder_width=8, gcn_kernel=3)
    optimizers = build_optimizers(model, "sgd", 0.1, 1.0, 0.0, 0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    folder = tmp_path / "run"
    target = save_checkpoint(folder, model, None, optimizers, TrainingState(1))
    files = {path.name: path.read_bytes() for path in sorted(target.iterdir()) if path.name != MANIFEST}
    assert len(files) == 3
    rng = random.Random(2)
    refused = 0
    for trial in range(500):
        name = list(files)[trial % len(files)]
        (target / name).write_bytes(mutate(files[name], rng))
        digest = write_manifest(target, {other: digest_of(target / other) for other in files})
        (folder / LATEST).write_text(f"{target.name} {digest}\n")
        refused += refused_or_read(lambda: load_checkpoint(folder, model, None, optimizers), CheckpointError)
        (target / name).write_bytes(files[name])
    assert 150 < refused < 500


def test_s2_mutated_model_folders_are_refused_or_read(model_folder: Path) -> None:
    rng = random.Random(1)
    refused = 0
    for trial in range(300):
        path = model_folder / (WEIGHTS_FILE, CONFIG_FILE)[trial % 2]
        content = path.read_bytes()
        path.write_bytes(mutate(content, rng))
        refused += refused_or_read(lambda: load_pretrained(model_folder), CheckpointError)
        path.write_bytes(content)
    assert refused > 100


def test_a_safetensors_file_of_another_network_is_no_crash(model_folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, model_folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
        load_pretrained(model_folder)
