"""Backbones against facts about torchvision's and timm's models: key names and shapes, read off the libraries."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exfuse.errors import CheckpointError
from exfuse.models import backbones
from exfuse.models.backbones import resnet
from exfuse.models.registry import count_multiply_adds, count_parameters
from exfuse.models.storage.backbone_weights import load_backbone_state, load_backbone_weights

PUBLISHED = json.loads((Path(__file__).parent / "backbone_keys.json").read_text())
OURS = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnext50_32x4d": resnet.resnext50,
    "resnext101_32x4d": resnet.resnext101,
}


def test_all_published_lists_are_checked() -> None:
    assert len(PUBLISHED) == 11
    assert {name.partition("_")[2] for name in PUBLISHED} == set(OURS)


@pytest.mark.parametrize("published", PUBLISHED)
def test_a_public_state_dict_loads_as_it_is(published: str) -> None:
    state = {
        name: torch.zeros(shape, dtype=torch.int64) if name.endswith("num_batches_tracked") else torch.rand(shape)
        for name, shape in PUBLISHED[published].items()
    }
    with torch.device("meta"):
        backbone = OURS[published.partition("_")[2]]()
    backbone.to_empty(device="cpu")
    load_backbone_state(backbone, state)
    loaded = backbone.state_dict()
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}
    assert set(loaded) <= set(state)
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    state = resnet.resnet18().state_dict()
    path = tmp_path / "weights.safetensors"
    for change, message in (
        ({"conv1.weight": None}, "missing keys: conv1.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1.weight \(64, 3, 3, 3\).*\(64, 3, 7, 7\)"),
        ({"layer9.weight": torch.zeros(1)}, "unknown keys: layer9.weight"),
    ):
        changed = {name: value for name, value in (state | change).items() if value is not None}
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load_backbone_weights(resnet.resnet18(), path)


def test_an_unreadable_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load_backbone_weights(resnet.resnet18(), path)
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors.*safetensors"):
        load_backbone_weights(resnet.resnet18(), path)


@pytest.mark.parametrize("make", [*OURS.values(), resnet.resnext101_rearranged, resnet.resnext131])
def test_features_have_the_stated_strides_and_channels(make: type[resnet.ResNet]) -> None:
    with torch.device("meta"):
        backbone = make()
        features = backbone(torch.empty(1, 3, 64, 96))
    shapes = [tuple(feature.shape[1:]) for feature in features]
    strides = zip(backbone.channels, backbones.STRIDES, strict=True)
    assert shapes == [(channels, 64 // stride, 96 // stride) for channels, stride in strides]
    assert backbone.channels in ((64, 128, 256, 512), (256, 512, 1024, 2048))


def test_rearranged_resnext_costs_the_same_within_one_percent() -> None:
    with torch.device("meta"):
        original, rearranged = resnet.resnext101(), resnet.resnext101_rearranged()
        deeper = resnet.resnext131()
    cost = count_multiply_adds(original)
    assert abs(count_multiply_adds(rearranged) / cost - 1) < 0.01
    assert count_parameters(rearranged) > count_parameters(original)
    assert len([name for name, _ in deeper.named_modules() if name.endswith("conv3")]) == 43


def test_rearranged_resnet34_costs_exactly_the_same() -> None:
    with torch.device("meta"):
        original, rearranged = resnet.resnet34(), resnet.resnet34_rearranged()
    assert count_multiply_adds(rearranged) == count_multiply_adds(original) == 19_138_609_152
    assert count_parameters(rearranged) > count_parameters(original)


def test_multiply_adds_agree_with_the_published_count_of_resnet50() -> None:
    # He et al. (CVPR 2016, table 1) give 3.8 G for their form and 224 x 224; with the stride in the 3 x 3 it is 4.1 G.
    with torch.device("meta"):
        assert 4.0e9 < count_multiply_adds(resnet.resnet50(), 224, 224) < 4.2e9


def test_a_basic_block_has_no_grouped_form() -> None:
    with pytest.raises(ValueError, match="BasicBlock"):
        resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), groups=32, width_per_group=4)
