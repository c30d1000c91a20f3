"""What a backbone can begin with, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from exfuse.errors import CheckpointError
from exfuse.manifest import MANIFEST
from exfuse.models.backbones import resnet
from exfuse.models.semantic_supervision import FourBools, SemanticSupervisionClassifier, SupervisedBackbone
from exfuse.models.storage.backbone_weights import CLASSIFIER_TYPE, load_backbone_weights, pretraining_normalization
from exfuse.models.storage.folder import CONFIG_FILE, WEIGHTS_FILE
from exfuse.models.storage.pretrained import save_pretrained


def classifier_folder(folder: Path, with_head: FourBools, hidden_width: int = 16) -> dict[str, Tensor]:
    model = SemanticSupervisionClassifier(resnet.tiny(), 4, with_head, hidden_width)
    description = {"model_type": CLASSIFIER_TYPE, "architecture": {"with_head": with_head}}
    save_pretrained(folder, model, description | {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}, card="")
    return model.state_dict()


@pytest.mark.parametrize("with_head", [(True, True, True, True), (False, False, False, False)])
def test_a_plain_backbone_takes_the_body_and_drops_the_heads(with_head: FourBools, tmp_path: Path) -> None:
    state = classifier_folder(tmp_path / "backbone", with_head)
    backbone = resnet.tiny()
    load_backbone_weights(backbone, tmp_path / "backbone")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[f"backbone.body.{name}"])


@pytest.mark.parametrize("hidden_width", [0, 16])
def test_a_supervised_backbone_takes_the_convolutions_of_the_heads(hidden_width: int, tmp_path: Path) -> None:
    state = classifier_folder(tmp_path / "backbone", (True, True, True, True), hidden_width)
    backbone = SupervisedBackbone(resnet.tiny())
    load_backbone_weights(backbone, tmp_path / "backbone")
    loaded = backbone.state_dict()
    assert any(name.startswith("heads.3.conv2") for name in loaded)
    for name, value in loaded.items():
        assert torch.equal(value, state[f"backbone.{name}"])


def test_heads_that_were_not_trained_cannot_be_read(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "backbone", (False, True, True, True))
    with pytest.raises(CheckpointError, match=r"backbone.*\bres2\b.*supervised_features=false"):
        load_backbone_weights(SupervisedBackbone(resnet.tiny()), tmp_path / "backbone")


def test_how_the_images_were_normalised_is_read(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "backbone", (True, True, True, True))
    assert pretraining_normalization(tmp_path / "backbone") == ([0.5] * 3, [0.2] * 3)
    assert pretraining_normalization(tmp_path / "public.safetensors") is None


def test_public_weights_have_no_heads_to_read(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file(resnet.tiny().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"resnet\.safetensors.*supervised_features=false"):
        load_backbone_weights(SupervisedBackbone(resnet.tiny()), path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "backbone", (True, True, True, True))
    with pytest.raises(CheckpointError, match=r"backbone: .*layer1\.1\.conv1\.weight"):
        load_backbone_weights(resnet.resnet18(), tmp_path / "backbone")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"config\.json.*No such file"),
        ("[", r"config\.json.*readable"),
        ("[]", r"config\.json.*readable"),
        ("{}", r"config\.json.*readable"),
        (json.dumps({"model_type": "exfuse"}), "backbone: .*'exfuse' .*exfuse pretrain"),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused(config: str | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    classifier_folder(folder, (True, True, True, True))
    (folder / MANIFEST).unlink()
    if config is None:
        (folder / CONFIG_FILE).unlink()
    else:
        (folder / CONFIG_FILE).write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_backbone_weights(resnet.tiny(), folder)


def test_a_damaged_weights_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    classifier_folder(folder, (True, True, True, True))
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04junk")
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*readable"):
        load_backbone_weights(resnet.tiny(), folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE])
def test_a_changed_folder_is_refused_until_its_manifest_is_deleted(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    classifier_folder(folder, (True, True, True, True))
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1  # in the last weight, or the line break before the description's last bracket
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(resnet.tiny(), folder)
    assert str(folder / name) in str(caught.value)
    assert str(folder / MANIFEST) in str(caught.value)
    if name == WEIGHTS_FILE:
        (folder / MANIFEST).unlink()
        load_backbone_weights(resnet.tiny(), folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = resnet.tiny().state_dict()
    state["layer2.0.bn1.running_var"][3] = torch.inf
    save_file(state, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"resnet\.safetensors: .*layer2\.0\.bn1\.running_var"):
        load_backbone_weights(resnet.tiny(), tmp_path / "resnet.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"resnet\.safetensors.*regular file"):
        load_backbone_weights(resnet.tiny(), tmp_path / "resnet.safetensors")
