"""The folded network against the one it was made from."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exfuse.errors import ConfigError
from exfuse.layers import DapControlConv, DenselyAdjacentPrediction, LearnedUpsample
from exfuse.models.backbones.base import Backbone, ConvNormPair
from exfuse.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from exfuse.models.exfuse import ExFuse
from exfuse.models.folding import FoldedTail, fold
from exfuse.models.options import ModelOptions
from exfuse.models.registry import create_model
from exfuse.models.semantic_supervision import SupervisedBackbone
from support.networks import unsettle

Tail = tuple[nn.Module, int, int, int]  # f, D, scale, reach


def tails() -> dict[str, Tail]:
    torch.manual_seed(0)
    found: dict[str, Tail] = {}
    for window, once, twice in ((3, 1, 1), (5, 2, 2), (7, 2, 2)):
        dap, wide = DenselyAdjacentPrediction(2, window), 2 * window**2
        deconvolutions = (LearnedUpsample(6, 6), LearnedUpsample(6, wide))
        found |= {
            f"two deconvolutions, {window}": (nn.Sequential(*deconvolutions, dap), 6, 4, twice),
            f"one deconvolution, {window}": (nn.Sequential(LearnedUpsample(5, wide), dap), 5, 2, once),
            f"a 1 x 1 convolution, {window}": (nn.Sequential(nn.Conv2d(7, wide, 1), dap), 7, 1, window // 2),
        }
    plain = DapControlConv(2, 3)
    return found | {
        "two deconvolutions, plain": (
            nn.Sequential(LearnedUpsample(6, 6), LearnedUpsample(6, 18), plain),
            6,
            4,
            2,
        ),
        "one deconvolution, plain": (nn.Sequential(LearnedUpsample(5, 18), plain), 5, 2, 2),
        "a 1 x 1 convolution, plain": (nn.Sequential(nn.Conv2d(7, 18, 1), plain), 7, 1, 2),
    }


@pytest.mark.parametrize("more", [(0, 0), (0, 4), (2, 0), (5, 8)])
@pytest.mark.parametrize("name", tails())
def test_a_folded_tail_is_the_tail_to_rounding_border_and_bias_included(name: str, more: tuple[int, int]) -> None:
    tail, channels, scale, reach = tails()[name]
    tail = unsettle(tail.double())
    size = [2 * reach + 1 + extra for extra in more]
    y = torch.randn(2, channels, *size, dtype=torch.float64)
    folded = FoldedTail(tail, channels, scale, reach, torch.empty(0, dtype=torch.float64))(y)
    assert folded.shape[-2:] == (scale * size[0], scale * size[1])
    torch.testing.assert_close(folded, tail(y), rtol=0, atol=1e-12)


def test_a_fold_without_the_border_kernels_would_be_wrong() -> None:
    tail, channels, scale, reach = tails()["two deconvolutions, 3"]
    tail = unsettle(tail.double())
    folded = FoldedTail(tail, channels, scale, reach, torch.empty(0, dtype=torch.float64))
    y = torch.randn(1, channels, 6, 6, dtype=torch.float64)
    naive = nn.functional.pixel_shuffle(nn.functional.conv2d(y, folded.weight_1_1, folded.bias_1_1, padding=1), scale)
    gap = (naive - tail(y)).abs()
    assert gap[..., scale:-scale, scale:-scale].max() < 1e-12
    assert gap[..., :scale, :].max() > 1e-3
    assert gap[..., :, -scale:].max() > 1e-3


SWITCHES = {
    "paper": {"decoder": "full", "decoder_width": "wide"},
    "narrow": {"decoder": "full", "decoder_width": "narrow"},
    "number": {"decoder": "full", "decoder_width": 12},
    "stride4": {"decoder": "stride4", "decoder_width": 12},
    "stride4 wide": {"decoder": "stride4", "decoder_width": "wide"},
    "stride4 wide, window 5": {"decoder": "stride4", "decoder_width": "wide", "dap_window": 5},
    "stride4 wide, plain": {"decoder": "stride4", "decoder_width": "wide", "dap_control_conv": True},
    "window 5": {"decoder": "full", "dap_window": 5, "decoder_width": 8},
    "window 5, stride4": {"decoder": "stride4", "dap_window": 5, "decoder_width": 8},
    "plain prediction": {"decoder": "stride4", "dap_control_conv": True, "decoder_width": 12},
    "plain prediction, full": {"decoder": "full", "dap_control_conv": True, "decoder_width": 12},
    "reduced": {"decoder": "stride4", "semantic_embedding_width": 5, "decoder_width": 12},
    "plain product": {"decoder": "stride4", "semantic_embedding_norm": False, "decoder_width": 12},
    "supervised": {"decoder": "stride4", "supervised_features": True, "decoder_width": 12},
    "baseline": {
        "decoder": "full",
        "dap_window": 1,
        "semantic_embedding": False,
        "channel_resolution_embedding": False,
    },
}


@pytest.mark.parametrize("size", [(64, 96), (65, 47)])
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_folded_network_is_the_network(switches: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = create_model("exfuse_tiny", num_classes=3, gcn_kernel=5, **SWITCHES[switches])
    model = unsettle(model).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected, folded = model(images).logits, fold(model)(images).logits
    assert torch.allclose(folded, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("switches", ["paper", "narrow", "stride4", "stride4 wide"])
def test_in_fp32_logits_agree_to_rounding_and_labels_where_they_are_clear(switches: str) -> None:
    torch.manual_seed(0)
    model = unsettle(create_model("exfuse_tiny", num_classes=5, **SWITCHES[switches])).eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected, folded = model(images).logits, fold(model)(images).logits
        exact = copy.deepcopy(model).double()(images.double()).logits
    scale = float(expected.abs().max())
    # Rounding alone takes the network itself some 1e-6 away from what float64 gives; folding must not add to it.
    of_network, of_folded = (float((logits - exact).abs().max()) / scale for logits in (expected, folded))
    assert of_folded <= max(2e-6, 1.5 * of_network)  # 1.001e-6 on an EPYC, less on a Xeon
    assert of_network < 3e-6
    top = expected.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > 1e-5 * scale
    assert torch.equal(folded.argmax(1)[clear], expected.argmax(1)[clear])


class PreActivated(Backbone):
    """A backbone whose norms stand before the convolutions of the same number."""

    channels = (4, 8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, kernel_size=4, stride=4)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 8, kernel_size=2, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x2 = self.stem(images)
        x3 = self.conv1(self.bn1(x2).relu())
        return x2, x3, nn.functional.avg_pool2d(x3, 2), nn.functional.avg_pool2d(x3, 4)


def test_norms_of_other_peoples_backbones_are_left_alone() -> None:
    torch.manual_seed(0)
    backbone = PreActivated()
    model = unsettle(ExFuse(backbone, 2, ModelOptions(decoder="stride4", decoder_width=4))).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(images).logits, model.eval()(images).logits, rtol=1e-9, atol=1e-9)


class WrongPairs(PreActivated):
    """The same, which claims that all its norms are in pairs."""

    def conv_norm_pairs(self) -> Iterator[ConvNormPair]:
        return iter(())


def test_a_norm_that_its_backbone_does_not_name_is_an_error() -> None:
    model = ExFuse(WrongPairs(), 2, ModelOptions(decoder="stride4", decoder_width=4))
    with pytest.raises(ConfigError, match=r"backbone\.bn1: .*WrongPairs\.conv_norm_pairs"):
        fold(model)


def test_a_window_wider_than_the_smallest_map_is_left_as_it_is() -> None:
    model = create_model("exfuse_tiny", num_classes=2, decoder="stride4", decoder_width=4, dap_window=9).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_no_batch_norm_is_left(block: type) -> None:
    body = ResNet(block, (1, 2, 1, 1), widths=(8, 8, 16, 16), stem_channels=8)
    model = ExFuse(SupervisedBackbone(body), 3, ModelOptions(decoder="stride4", decoder_width=9))
    assert batch_norms(model) > 10
    assert batch_norms(fold(model)) == 0


@pytest.mark.parametrize(
    "parts", [{}, {"dap_window": 5, "decoder_width": 8}, {"dap_control_conv": True}, {"decoder_width": "narrow"}]
)
def test_the_folded_full_size_network_holds_no_wide_map_at_full_size(parts: dict[str, object]) -> None:
    model = fold(create_model("exfuse_tiny", num_classes=3, gcn_kernel=3, **parts))
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, arguments: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append(tuple(output.shape))

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.randn(1, 3, 128, 128))
    assert max(channels for _, channels, height, _ in (s for s in seen if len(s) == 4) if height == 128) == 3


def test_a_folded_network_can_be_saved_and_read(tmp_path: Path) -> None:
    model = fold(create_model("exfuse_tiny", num_classes=3, gcn_kernel=3, decoder="stride4", decoder_width=8))
    other = fold(create_model("exfuse_tiny", num_classes=3, gcn_kernel=3, decoder="stride4", decoder_width=8))
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(images).logits, model(images).logits, rtol=0, atol=0)
