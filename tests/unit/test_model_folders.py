"""Model folders: what is written is recognised, what is changed is refused."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST, write_manifest
from exfuse.models.folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, verify_model
from exfuse.models.info import ModelInfo
from exfuse.models.pretrained import load_pretrained, save_pretrained

INFO = ModelInfo(
    name="exfuse_tiny",
    parts={"decoder": "stride4", "decoder_width": 8, "gcn_kernel": 3},
    class_names=("ground", "tree", "sky"),
    palette=((10, 20, 30), (200, 0, 0), (0, 200, 0)),
    ignore_index=255,
    image_mean=(0.4, 0.5, 0.6),
    image_std=(0.2, 0.25, 0.3),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model", INFO.build(), INFO.to_json(), "# A card\n")
    return tmp_path / "model"


@pytest.mark.parametrize("open_model", [load_pretrained, verify_model], ids=["load", "verify"])
@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, MANIFEST])
def test_any_changed_bit_is_refused_by_the_files_name(
    name: str, open_model: Callable[[Path], object], folder: Path
) -> None:
    content = (folder / name).read_bytes()
    for place in np.random.default_rng(0).integers(8 * len(content), size=10):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        (folder / name).write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            open_model(folder)
        assert str(caught.value).startswith(f"{folder / name}: ")
        assert f"delete {folder / MANIFEST}" in str(caught.value)
    (folder / name).write_bytes(content)
    open_model(folder)


def test_a_folder_without_a_manifest_opens_and_one_with_another_is_refused(folder: Path) -> None:
    digests = verify_model(folder)
    assert set(digests) == {WEIGHTS_FILE, CONFIG_FILE}
    (folder / MANIFEST).unlink()
    assert verify_model(folder) == digests
    load_pretrained(folder)
    write_manifest(folder, {CONFIG_FILE: digests[CONFIG_FILE]})
    with pytest.raises(CheckpointError, match=rf"manifest\.json: does not list {WEIGHTS_FILE}"):
        load_pretrained(folder)


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / CARD_FILE).write_text("# Other words\n")
    load_pretrained(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    value: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = INFO.build()
    with torch.no_grad():
        model.fuse3.refine.conv1.bias[2] = value
    before = (folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(CheckpointError, match=r"model: .*fuse3\.refine\.conv1\.bias"):
        save_pretrained(folder, model, INFO.to_json(), "")
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("exfuse.models.pretrained.check_finite", lambda weights, place: None)
        save_pretrained(folder, model, INFO.to_json(), "")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*fuse3\.refine\.conv1\.bias"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, MANIFEST])
def test_a_pipe_in_a_model_folder_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}.*not a regular file"):
        load_pretrained(folder)
