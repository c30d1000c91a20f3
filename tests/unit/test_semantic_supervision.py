"""The classifier with auxiliary heads, and the backbone that is read through them."""

import pytest
import torch

from exfuse.models import backbones
from exfuse.models.backbones import resnet
from exfuse.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from exfuse.models.registry import create_model
from exfuse.models.semantic_supervision import FourBools, SemanticSupervisionClassifier, SupervisedBackbone

ALL: FourBools = (True, True, True, True)


def small_bottleneck() -> ResNet:
    return ResNet(Bottleneck, (1, 1, 1, 1), widths=(8, 16, 64, 256), stem_channels=8)


def test_heads_keep_the_channels_of_narrow_stages_and_cap_those_of_wide_ones() -> None:
    with torch.device("meta"):
        assert SupervisedBackbone(resnet.resnet18()).channels == (64, 128, 256, 512)
        assert SupervisedBackbone(resnet.resnet50()).channels == (256, 512, 512, 512)


def test_features_have_the_strides_and_channels_that_the_decoder_is_told() -> None:
    backbone = SupervisedBackbone(small_bottleneck())
    features = backbone(torch.randn(2, 3, 64, 96))
    assert [feature.shape for feature in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbones.STRIDES, strict=True)
    ]


def test_a_stage_without_a_head_is_read_as_it_is() -> None:
    body = small_bottleneck().eval()
    backbone = SupervisedBackbone(body, (True, False, False, False)).eval()
    images = torch.randn(1, 3, 64, 64)
    plain, read = body(images), backbone(images)
    assert read[0].shape[1] == 32
    assert not torch.equal(read[0], plain[0])
    for index in (1, 2, 3):
        torch.testing.assert_close(read[index], plain[index], rtol=0, atol=0)


def test_a_feature_is_the_second_convolution_normalised_and_rectified() -> None:
    backbone = SupervisedBackbone(ResNet(BasicBlock, (1, 1, 1, 1), (4, 8, 8, 8), stem_channels=4)).eval().double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    stage, head = backbone.body(images)[1], backbone.heads[1]
    hidden = stage
    for convolution, norm in ((head.conv1, head.bn1), (head.conv2, head.bn2)):
        hidden = torch.nn.functional.conv2d(hidden, convolution.weight, padding=1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        hidden = ((hidden - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).relu()
    torch.testing.assert_close(backbone(images)[1], hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads", [ALL, (False, False, False, False), (False, True, False, True)])
@pytest.mark.parametrize("hidden_width", [0, 24])
def test_every_parameter_learns_and_there_is_one_score_for_each_head(heads: FourBools, hidden_width: int) -> None:
    torch.manual_seed(0)
    model = SemanticSupervisionClassifier(small_bottleneck(), 7, heads, hidden_width)
    output = model(torch.randn(4, 3, 64, 64))
    assert output.logits.shape == (4, 7)
    assert [logits.shape for logits in output.auxiliary_logits] == [(4, 7)] * sum(heads)
    total = sum((logits.square().mean() for logits in output.auxiliary_logits), output.logits.square().mean())
    total.backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_a_head_classifies_by_two_linear_layers_with_relu_between_them() -> None:
    model = SemanticSupervisionClassifier(small_bottleneck(), 5, ALL, 24).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    feature = model.backbone(images)[1]
    hidden, _, last = model.auxiliary_fc[1]
    assert hidden.weight.shape == (24, 64)
    expected = feature.mean(dim=(2, 3)) @ hidden.weight.T + hidden.bias
    expected = expected.clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(model(images).auxiliary_logits[1], expected.float(), rtol=0, atol=1e-6)


def test_without_a_hidden_width_a_head_has_the_names_and_the_draws_of_one_linear_layer() -> None:
    torch.manual_seed(0)
    body = small_bottleneck()
    backbone, fc = SupervisedBackbone(body), torch.nn.Linear(1024, 5)
    heads = [torch.nn.Linear(channels, 5) for channels in backbone.channels]
    torch.manual_seed(0)
    state = SemanticSupervisionClassifier(small_bottleneck(), 5, head_hidden_width=0).state_dict()
    assert torch.equal(state["fc.weight"], fc.weight)
    for level, head in enumerate(heads):
        assert torch.equal(state[f"auxiliary_fc.{level}.weight"], head.weight)
        assert torch.equal(state[f"auxiliary_fc.{level}.bias"], head.bias)


def test_without_heads_it_is_the_plain_classifier() -> None:
    body = small_bottleneck().eval()
    model = SemanticSupervisionClassifier(body, 5, (False, False, False, False)).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model.fc(body(images)[3].mean(dim=(2, 3)))
    torch.testing.assert_close(model(images).logits, expected)
    names = {name for name, _ in model.named_parameters() if not name.startswith("backbone.body.")}
    assert names == {"fc.weight", "fc.bias"}


def test_the_heads_do_not_change_the_final_scores() -> None:
    body = small_bottleneck().eval()
    plain = SemanticSupervisionClassifier(body, 5, (False, False, False, False)).eval()
    supervised = SemanticSupervisionClassifier(body, 5).eval()
    supervised.fc = plain.fc
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(supervised(images).logits, plain(images).logits, rtol=0, atol=0)


def test_a_named_model_can_read_supervised_features() -> None:
    torch.manual_seed(0)
    model = create_model("exfuse_tiny", num_classes=3, supervised_features=True, decoder="stride4", decoder_width=8)
    assert isinstance(model.backbone, SupervisedBackbone)
    assert {name.split(".")[1] for name, _ in model.backbone.named_parameters()} >= {"0", "1", "2", "3"}
    output = model(torch.randn(2, 3, 64, 64))
    output.logits.square().mean().backward()
    heads = dict(model.backbone.heads.named_parameters())
    assert all(value.grad is not None and value.grad.any() for value in heads.values())
