"""S1 to S8: files and settings that somebody damaged, or made to do harm."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from exfuse.atomic_io import digest_of
from exfuse.cli.app import main
from exfuse.data.datasets import open_dataset, read_dataset_file
from exfuse.data.samples import image_size, read_image, read_mask
from exfuse.errors import CheckpointError, ConfigError, DataError
from exfuse.manifest import MANIFEST, verify_folder, write_manifest
from exfuse.models.backbones import resnet
from exfuse.models.options import options_of
from exfuse.models.registry import build_model, create_model
from exfuse.models.storage.backbone_weights import load_backbone_weights
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE
from exfuse.models.storage.import_weights import import_weights
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from exfuse.training.checkpoint import LATEST, TrainingState, load_checkpoint, save_checkpoint
from exfuse.training.optim import build_optimizers
from exfuse.training.recipes import load_config, read_recipe_text
from support import image_variants
from support.faults import mutate

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {"decoder": "stride4", "decoder_width": 8, "gcn_kernel": 3}),
    class_names=("a", "b", "c"),
    palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


class ExecBomb(Bomb):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@contextmanager
def at_most(seconds: float, megabytes: int) -> Iterator[None]:
    """Checks how long the block computes, and by how much it raises the peak of this process's resident memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = memory("VmRSS"), time.process_time()
    yield
    assert time.process_time() - started < seconds
    assert memory("VmHWM") - before < megabytes * 2**20


def memory(key: str) -> int:
    """Returns one of the kernel's counts of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


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


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", build_model(INFO), INFO.to_json(), "")
    (tmp_path / "model" / MANIFEST).unlink()  # as others make such folders; it would tell of each change below
    return tmp_path / "model"


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
    with pytest.raises(CheckpointError, match=r"weights\.pth: .*lacks bn1\.bias"):
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


FORMATS = {
    "jpg": {"format": "JPEG", "quality": 80},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "palette.png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "deflate.tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
    "bmp": {"format": "BMP"},
    "palette.bmp": {"format": "BMP"},
}


def mutated_images(tmp_path: Path, count: int) -> None:
    rng = random.Random(0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    originals = {}
    for name, options in FORMATS.items():
        buffer = io.BytesIO()
        (picture.quantize(32) if "palette" in name else picture).save(buffer, **options)
        originals[name] = buffer.getvalue()
    refused = 0
    for trial in range(count):
        name = list(FORMATS)[trial % len(FORMATS)]
        path = tmp_path / name
        path.write_bytes(mutate(originals[name], rng))
        started = time.process_time()
        shapes = []
        for read in (read_image, read_mask):
            try:
                array = read(path)
            except DataError as error:
                refused += 1
                said = str(error)
            else:
                said = name
                assert array.dtype == np.uint8
                assert array.ndim == (3 if read is read_image else 2)
                assert array.size > 0
                shapes.append(array.shape[:2])
            assert name in said
        # What can be read has the size that its header says.
        assert shapes == len(shapes) * [image_size(path)] if shapes else True
        assert time.process_time() - started < 2
    assert refused > count / 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
def test_s3_mutated_images_are_refused_or_read(tmp_path: Path) -> None:
    mutated_images(tmp_path, 3000)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_s3_mutated_images_are_refused_or_read_at_length(tmp_path: Path) -> None:
    mutated_images(tmp_path, 20_000)


def png_of_size(width: int, height: int) -> bytes:
    """Returns a PNG whose header promises that size, with little behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (8000, 8000), (16_385, 1), (1, 16_385), (2**31 - 1, 2**31 - 1)])
def test_s4_bombs_are_refused_from_the_header(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    read_refused(path)  # once, so that Pillow has loaded what it needs
    with at_most(seconds=0.05, megabytes=20):
        read_refused(path)


def test_s4_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    path = tmp_path / "bomb.jpg"
    path.write_bytes(content[:last] + 200 * content[last:-2] + b"\xff\xd9")
    with at_most(seconds=0.05, megabytes=20), pytest.raises(DataError, match=r"bomb\.jpg: .*\b100 scans\b"):
        read_image(path)
    path.write_bytes(content)
    assert read_image(path).shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["bomb.webp", "bomb.png"])
def test_s4_files_of_too_many_bytes_are_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path)
    with path.open("ab") as file:
        file.truncate(1 << 30)  # a hole, which takes no space
    with at_most(seconds=0.05, megabytes=20):
        for read in (read_image, read_mask, image_size):
            with pytest.raises(DataError, match=rf"{name}: {path.stat().st_size:,} bytes"):
                read(path)


def test_s4_a_set_of_small_files_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    """The doctor and the scan, in a process of their own, of images of 50 megapixels; four at a time took 3.9 GB."""
    images, masks, side = tmp_path / "images", tmp_path / "masks", 7071
    images.mkdir()
    masks.mkdir()
    picture = Image.new("RGBA", (side, side), (10, 20, 30, 40))
    picture.save(images / "a.tif", compression="tiff_adobe_deflate", tiffinfo={278: side})  # all rows in one strip
    picture.save(images / "b.webp", lossless=True, quality=0, method=0)
    Image.new("L", (side, side), 1).save(masks / "a.png", compress_level=1)
    (masks / "b.png").hardlink_to(masks / "a.png")
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) < 4_000_000
    (tmp_path / "train.txt").write_text("a\nb\n")
    script = """
import sys
from pathlib import Path
from exfuse.data.datasets import open_dataset
from exfuse.data.doctor import validate
from exfuse.data.stats import compute_stats
dataset = open_dataset(Path(sys.argv[1]), "train")
assert validate(dataset).errors == 0
assert compute_stats(dataset).pixel_counts[1] == 2 * 7071 * 7071
status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
print(status.split("VmHWM:")[1].split()[0])
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < 1e9


def tiff_with(tags: dict[int, tuple[int, ...]], piece: bytes) -> bytes:
    return image_variants.tiff({258: (8,) * 3, 262: (2,), 277: (3,)} | tags, [piece])


EMPTY = zlib.compress(bytes(1000))
COSTLY = {
    "tile.tif": lambda: tiff_with({259: (8,), 322: (16_000,), 323: (16_000,), 324: (8,), 325: (len(EMPTY),)}, EMPTY),
    "runs.bmp": lambda: image_variants.bmp(8, b"\1\1" * 2_000_000, image_variants.PALETTE, 1),
    "segments.jpg": lambda: b"\xff\xd8" + b"\xff\xe1\xff\xffExif\0\0".ljust(65_537, b"\1") * 100 + jpeg()[2:],
    "empty segments.jpg": lambda: b"\xff\xd8" + b"\xff\xe2\0\2" * 500_000 + jpeg()[2:],
    "between segments.jpg": lambda: b"\xff\xd8\xff\xe2\0\2" + bytes(3_000_000) + jpeg()[2:],
    "chunks.png": lambda: image_variants.png(
        (8, 0, 0, 0, 0), [(b"teXt", b"")] * 300_000 + [image_variants.png_pixels(image_variants.GREY, 8)]
    ),
}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", COSTLY)
def test_s4_what_would_take_long_is_refused_from_the_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(COSTLY[name]())
    with at_most(seconds=1, megabytes=30):
        for read in (read_image, read_mask, image_size):
            with pytest.raises(DataError, match=name):
                read(path)


def test_s4_a_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (7000, 7000)).save(path, compress_level=1)
    image_size(path)
    with at_most(seconds=0.1, megabytes=10):
        assert image_size(path) == (7000, 7000)


def test_broken_files_leave_the_terminal_clean(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng, names = random.Random(0), []
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    for number, compression in enumerate(10 * ["tiff_lzw", "tiff_adobe_deflate", "jpeg"]):
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression=compression)
        broken = bytearray(buffer.getvalue())
        for place in rng.sample(range(100, 1500), 20):
            broken[place] ^= 0x55
        (tmp_path / "images" / f"{number}.tif").write_bytes(broken)
        Image.new("L", (56, 40)).save(tmp_path / "masks" / f"{number}.png")
        names.append(f"{number}\n")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("".join(names))
    command = [sys.executable, "-m", "exfuse", "doctor", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "readable" in result.stdout
    assert result.stderr == ""


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"a\.png: .*regular file"):
            read(tmp_path / "a.png")


def read_refused(path: Path) -> None:
    for read in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match=r"bomb\.png"):
            read(path)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    options: list[Callable[[], Any]] = [
        lambda: rng.choice(
            [None, True, False, float("nan"), float("inf"), -1, 0, 10**30, "", "x" * 1000, "null", "../.."]
        ),
        lambda: rng.randint(-(10**6), 10**6),
        lambda: rng.random() * 10 ** rng.randint(-30, 30),
    ]
    if depth < 4:
        options.append(lambda: [random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))])
        options.append(
            lambda: {str(random_value(rng, 4)): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        )
    return rng.choice(options)()


def paths_in(content: dict[str, Any], prefix: str = "") -> list[str]:
    paths = []
    for key, value in content.items():
        paths.append(f"{prefix}{key}")
        if isinstance(value, dict):
            paths += paths_in(value, f"{prefix}{key}.")
    return paths


def test_s6_fuzzed_recipes_are_refused_by_their_key(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "fuzzed.yaml"
    original = read_recipe_text("demo")
    keys = paths_in(yaml.safe_load(original))
    refused = 0
    for _ in range(500):
        content = yaml.safe_load(original)
        key = rng.choice(keys)
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner[section]
        if rng.random() < 0.3:
            last = last[: rng.randrange(len(last))] + rng.choice("abcxyz_ .")
        inner[last] = random_value(rng)
        path.write_text(yaml.safe_dump(content))
        started = time.process_time()
        try:
            load_config(str(path))
        except ConfigError as error:
            refused += 1
            said = str(error)
            assert str(path) in said
            assert last[:20] in said or key in said or "task" in key or said.endswith("got NoneType")
        assert time.process_time() - started < 1
    assert refused > 300


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)  # nine to the eleventh x


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS,
        "a: " + "[" * 5000,
        "a: " + "{b: " * 3000,
        "? " * 3000,
        "&a [*a]",
        "!!binary x",
        "a: !!bool x",
        "a: !!int ''",
        "a: !!float ''",
        "!!timestamp x",
        "{[a]: 1}",
        "? {a: 1}\n: 2",
        "a: !!python/object:os.system x",
    ],
)
def test_s6_yaml_that_explodes_is_refused_at_once(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    with at_most(seconds=2, megabytes=200):
        with pytest.raises(ConfigError, match=r"bomb\.yaml"):
            load_config(str(path))
        with pytest.raises(ConfigError, match=r"bomb\.yaml"):
            read_dataset_file(path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..", "images/../../secret", "x\x00y"]
)
def test_s7_names_in_a_list_stay_within_the_folder(name: str, pack: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for secret in (tmp_path / "secret.png", root / "secret.png"):
        Image.new("L", (64, 64)).save(secret)
    (root / "classes.json").write_bytes((pack / "classes.json").read_bytes())
    (root / "train.txt").write_text(name + "\n")
    with pytest.raises(DataError, match="train"):
        open_dataset(root, "train")


@pytest.mark.parametrize("split", ["../train", "/etc/passwd", "a/../../b"])
def test_s7_splits_stay_within_the_folder(split: str, pack: Path) -> None:
    with pytest.raises(DataError):
        open_dataset(pack, split)
    with pytest.raises(DataError):
        open_dataset(pack / "images", split)


def test_s7_names_of_classes_lead_nowhere(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "a" / "b" / "data"
    shutil.copytree(pack, data)
    content = json.loads((data / "classes.json").read_text())
    names = ["../../out", f"{tmp_path}/out", "..", "[/red]", "<script>", "$(touch out)%s{}", "a\\..\\b"]
    for row, name in zip(content["classes"], names, strict=True):
        row["name"] = name
    (data / "classes.json").write_text(json.dumps(content))
    info = replace(INFO, class_names=tuple(names), palette=tuple((n, n, n) for n in range(len(names))))
    model = data.with_name("model")
    save_pretrained(model, build_model(info), info.to_json(), "")
    (tmp_path / "a" / "b" / "out").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b" / "out")

    def elsewhere() -> list[tuple[Path, int]]:
        found = sorted(tmp_path.rglob("*"))
        return [(path, path.stat().st_mtime_ns) for path in found if not path.is_relative_to(Path.cwd())]

    before = elsewhere()
    for command in (
        ("evaluate", model, data, "-o", "scores.json", "--engine=torch"),
        ("compare", model, model, data, "-o", "compared", "--engine=torch"),
        ("predict", model, data / "images", "-o", "predicted", "--engine=torch"),
        ("doctor", data, "-o", "found.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["exfuse", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, command
    assert elsewhere() == before
    assert {path.name for path in Path.cwd().iterdir()} == {"scores.json", "compared", "predicted", "found.json"}


def test_a_safetensors_file_of_another_network_is_no_crash(model_folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, model_folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
        load_pretrained(model_folder)
