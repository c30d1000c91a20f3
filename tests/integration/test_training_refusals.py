"""What a training run refuses before it starts, or leaves alone."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from exfuse.distributed import DistContext
from exfuse.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from exfuse.outputs.folder import claim_folder
from exfuse.training import loop, segmentation
from exfuse.training.recipes import dump_config
from exfuse.training.run import check_shards
from exfuse.training.segmentation import train
from support.small_datasets import ignore_everything_in
from support.special_files import be_a_pipe, be_endless
from support.tiny_run import (
    tiny_config,
    train_quietly,
)


@pytest.mark.parametrize(("size", "gradient_accumulation"), [(3, 1), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(pack: Path, tmp_path: Path, size: int, gradient_accumulation: int):
    config = tiny_config(pack, tmp_path / "run", f"gradient_accumulation={gradient_accumulation}")
    with pytest.raises(ConfigError, match=rf"\bbatch_size 4 .* {size * gradient_accumulation} "):
        check_shards(config, DistContext(0, size, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "become"),
    [(name, become) for name in ("config.yaml", "metrics.jsonl") for become in (be_a_pipe, be_endless)]
    + [(".exfuse.jsonl", be_a_pipe)],
)
def test_a_pipe_or_a_device_in_a_run_folder_is_refused_and_not_read(
    name: str, become: Callable[[Path], None], finished: Path, pack: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / name).unlink()
    become(run / name)
    with pytest.raises((CheckpointError, ConfigError, OutputError), match=re.escape(str(run))):
        train_quietly(tiny_config(pack, run), resume=True)


@pytest.mark.parametrize("what", ["images", "names of classes"])
def test_a_run_does_not_go_on_with_other_data(what: str, finished: Path, own_pack: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    if what == "images":
        names = (own_pack / "train.txt").read_text().split()
        (own_pack / "train.txt").write_text("\n".join(names[:-1]))
    else:
        content = json.loads((own_pack / "classes.json").read_text())
        first, second, *_ = content["classes"]
        first["name"], second["name"] = second["name"], first["name"]
        (own_pack / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{run}: .*data"):
        train_quietly(tiny_config(own_pack, run), resume=True)


def test_a_second_start_in_the_folder_of_a_run_is_refused(finished: Path, pack: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(OutputError, match=f"{finished}: .*--resume"):
        train_quietly(tiny_config(pack, finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


@pytest.mark.parametrize(
    "change", ["model.decoder_width=12", "optimizer.name=sgd", "seed=1", "data.flip=0", "epochs=3"]
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(change: str, finished: Path, pack: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    key, _, value = change.partition("=")
    with pytest.raises(ConfigError, match=rf" {re.escape(key)}=\S+ \(now {value}"):
        train_quietly(tiny_config(pack, finished, change), resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == times


@pytest.mark.parametrize("left", ["checkpoints", "checkpoints model", "checkpoints model model_last"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_begun_anew_over_what_is_left_of_it(
    left: str, resume: bool, finished: Path, pack: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in left.split():
        shutil.rmtree(run / name)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match=re.escape(str(run))):
        train_quietly(tiny_config(pack, run, "seed=9"), resume)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 805306368 bytes."),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=["python", "torch", "c++", "cuda"],
)
@pytest.mark.parametrize("place", [(loop, "take_step"), (segmentation, "compute_stats"), (segmentation, "build_model")])
def test_too_little_memory_is_one_of_our_errors_wherever_it_shows(
    place: tuple[object, str], error: Exception, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(*place, fail)
    with pytest.raises(TrainingError, match=r"memory .* data\.crop_size"):
        train_quietly(tiny_config(pack, tmp_path / "run"))


def test_a_recipe_that_was_edited_in_the_run_folder_is_not_written_over(pack: Path, tmp_path: Path) -> None:
    config = tiny_config(pack, tmp_path / "run", "epochs=1")
    with claim_folder(config.output, "exfuse train") as folder:  # and killed before its first checkpoint
        folder.write("config.yaml", dump_config(config).encode())
    edited = dump_config(config) + "# mine\n"
    (config.output / "config.yaml").write_text(edited)
    with pytest.raises(OutputError, match=r"/config\.yaml .*exfuse train"):
        train_quietly(config)
    assert (config.output / "config.yaml").read_text() == edited


@pytest.mark.parametrize("kind", ["edited", "link"])
def test_a_report_that_was_changed_is_not_written_over(kind: str, pack: Path, tmp_path: Path) -> None:
    config, precious = tiny_config(pack, tmp_path / "run", "epochs=1"), tmp_path / "precious"
    train_quietly(config)
    report = config.output / "report.html"
    precious.write_text("mine")
    if kind == "link":
        report.unlink()
        report.symlink_to(precious)
    else:
        report.write_text("mine")
    console = Console(file=io.StringIO(), width=500)
    train(config, resume=True, console=console)
    assert report.read_text() == precious.read_text() == "mine"
    assert f"no report: {report} " in console.file.getvalue()


def test_backbone_weights_of_another_backbone_are_refused(pack: Path, tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    config = tiny_config(pack, tmp_path / "run", f"model.backbone_weights={tmp_path / 'backbone.safetensors'}")
    with pytest.raises(CheckpointError, match=r"backbone\.safetensors: .*bn1\.weight"):
        train_quietly(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel_is_refused_before_training(
    split: str, own_pack: Path, tmp_path: Path
) -> None:
    names = (own_pack / f"{split}.txt").read_text().split()
    for name in names:
        ignore_everything_in(own_pack / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=rf"{own_pack}: .*\b{len(names)} masks of {split}\b"):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_split_whose_only_labelled_image_cannot_be_read_is_refused(own_pack: Path, tmp_path: Path) -> None:
    first, *others = (own_pack / "val.txt").read_text().split()
    for name in others:
        ignore_everything_in(own_pack / "masks" / f"{name}.png")
    (own_pack / "images" / f"{first}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{first}\.jpg"):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def make_unreadable(data: Path) -> str:
    path = data / "images" / "train_0007.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return r"train_0007\.jpg: .*readable"


def put_an_unknown_label_in_a_validation_mask(data: Path) -> str:
    path = data / "masks" / "val_0003.png"
    with Image.open(path) as image:
        labels = np.array(image)
    labels[10, 20] = 99
    Image.fromarray(labels).save(path)
    return r"val_0003\.png: 1 .*label 99\b.*row 10, column 20\b"


def remove_a_mask(data: Path) -> str:
    (data / "masks" / "train_0002.png").unlink()
    return r"train_0002\.png: .*no such"


def resize_a_mask(data: Path) -> str:
    path = data / "masks" / "train_0011.png"
    Image.new("L", (10, 20)).save(path)
    return r"train_0011\.png: .*10 x 20\b"


def empty_the_validation_list(data: Path) -> str:
    (data / "val.txt").write_text("\n")
    return "'val' .*no images"


def remove_the_images(data: Path) -> str:
    shutil.rmtree(data / "images")
    return "no data set .*'train'"


@pytest.mark.parametrize(
    "damage",
    [
        make_unreadable,
        put_an_unknown_label_in_a_validation_mask,
        remove_a_mask,
        resize_a_mask,
        empty_the_validation_list,
        remove_the_images,
    ],
)
def test_bad_data_is_reported_before_training_starts(
    damage: Callable[[Path], str], own_pack: Path, tmp_path: Path
) -> None:
    facts = damage(own_pack)
    with pytest.raises(DataError, match=facts):
        train_quietly(tiny_config(own_pack, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_not_there_is_a_data_error(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trian\.txt"):
        train_quietly(tiny_config(pack, tmp_path / "run", "data.train_split=trian"))
    assert not (tmp_path / "run").exists()


def test_without_a_data_set_nothing_starts(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root=FOLDER"):
        train_quietly(tiny_config(pack, tmp_path / "run", "data.root=null"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_is_refused_before_anything_is_written(pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'exfuse_tyni'.*'exfuse_tiny'"):
        train_quietly(tiny_config(pack, tmp_path / "run", "model.name=exfuse_tyni"))
    assert not (tmp_path / "run").exists()
