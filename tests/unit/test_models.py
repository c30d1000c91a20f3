"""The assembled network: gradients, switches, sizes, names."""

import sys
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer.testing
from rich.console import Console
from torch import Tensor, nn

import exfuse
from exfuse.cli.app import build_app
from exfuse.errors import ConfigError
from exfuse.models import backbones, registry
from exfuse.models.backbones import resnet
from exfuse.models.exfuse import FullSizeHead, QuarterSizeHead
from exfuse.models.options import option_types, options_of
from exfuse.models.registry import build_model, count_multiply_adds, count_parameters, create_model, describe_models
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import check_restorable, load_pretrained, save_pretrained
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

PARTS_OFF = {"semantic_embedding": False, "channel_resolution_embedding": False, "dap_window": 1}


@cache
def topology_of(backbone: str) -> tuple[type, tuple[int, ...], int]:
    """Returns the block, the depths and the groups of a named backbone."""
    with torch.device("meta"):
        full = backbones.BACKBONES[backbone]()
    depths = tuple(len(stage) for stage in (full.layer1, full.layer2, full.layer3, full.layer4))
    return type(full.layer1[0]), depths, full.layer1[0].conv2.groups


def small(name: str, **parts: object) -> exfuse.ExFuse:
    """Returns the named network with its real topology, narrow enough for a test."""
    block, depths, grouped = topology_of(name.partition("_")[2])
    narrow = {"groups": grouped, "width_per_group": 4} if grouped > 1 else {}
    widths = (64, 64, 64, 64) if grouped > 1 else (8, 16, 16, 16)
    backbone = resnet.ResNet(block, depths, widths, stem_channels=8, **narrow)
    return exfuse.ExFuse(backbone, 3, options_of(name, parts))


def missing_gradients(model: nn.Module, images: Tensor) -> list[str]:
    output = model.train()(images)
    scores = [output.logits, *output.auxiliary_logits]
    sum((score * torch.randn_like(score)).sum() for score in scores).backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("name", exfuse.list_models())
@pytest.mark.parametrize("decoder", ["full", "stride4"])
def test_every_parameter_of_every_named_model_gets_a_gradient(name: str, decoder: str) -> None:
    torch.manual_seed(0)
    model = small(name, decoder=decoder, gcn_kernel=3)
    assert missing_gradients(model, torch.randn(2, 3, 64, 64)) == []


@pytest.mark.parametrize(
    "parts",
    [
        {"decoder_width": "wide"},
        {"decoder_width": 20},
        {"decoder_width": "wide", "decoder": "stride4"},
        {"decoder_width": 20, "decoder": "stride4"},
        {"dap_window": 5},
        {"semantic_embedding_norm": False},
        {"semantic_embedding_width": 6},
        {"semantic_embedding_width": 6, "semantic_embedding_norm": False},
        {"channel_resolution_embedding": False, "auxiliary_prediction": True},
        {"channel_resolution_embedding": True, "auxiliary_prediction": False},
    ],
)
def test_every_parameter_gets_a_gradient_in_other_forms(parts: dict[str, object]) -> None:
    torch.manual_seed(0)
    assert missing_gradients(create_model("exfuse_tiny", num_classes=3, **parts), torch.randn(2, 3, 64, 96)) == []


@pytest.mark.parametrize(
    "switch",
    [
        {"semantic_embedding": False},
        {"semantic_embedding_norm": False},
        {"semantic_embedding_width": 6},
        {"channel_resolution_embedding": False},
        {"auxiliary_prediction": False},
        {"dap_window": 1},
        {"dap_window": 5},
        {"gcn_kernel": 11},
        {"decoder": "stride4"},
        {"decoder_width": "wide"},
        {"decoder_width": 12},
    ],
)
def test_each_switch_changes_the_set_of_parameters(switch: dict[str, object]) -> None:
    def shapes(**parts: object) -> dict[str, torch.Size]:
        model = create_model("exfuse_tiny", num_classes=3, **parts)
        return {name: parameter.shape for name, parameter in model.named_parameters()}

    assert shapes(**switch) != shapes()


@pytest.mark.parametrize("decoder", ["full", "stride4"])
@pytest.mark.parametrize("window", [1, 3])
def test_the_option_decides_the_layers_and_never_the_number(decoder: str, window: int) -> None:
    def layers(width: int | str) -> list[tuple[str, str]]:
        with torch.device("meta"):
            model = create_model(
                "exfuse_tiny", num_classes=11, decoder=decoder, decoder_width=width, dap_window=window, gcn_kernel=3
            )
        return [(name, type(module).__name__) for name, module in model.named_modules()]

    assert layers(10) == layers(11) == layers(12) == layers(98) == layers(99) == layers(100)
    assert len({str(layers(width)) for width in ("narrow", "wide", 40)}) == 2, "one of the names is as a number"


def test_with_all_parts_off_it_is_the_baseline() -> None:
    off = create_model("exfuse_tiny", num_classes=5, **PARTS_OFF)
    baseline = create_model("gcn_tiny", num_classes=5)
    assert {k: v.shape for k, v in off.state_dict().items()} == {k: v.shape for k, v in baseline.state_dict().items()}
    baseline.load_state_dict(off.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(off.eval()(images).logits, baseline.eval()(images).logits)


@pytest.mark.parametrize("name", ["gcn_tiny", "exfuse_tiny"])
@pytest.mark.parametrize("decoder", ["full", "stride4"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 99), (64, 96)])
def test_scores_have_the_images_size_for_any_size(name: str, decoder: str, size: tuple[int, int]) -> None:
    model = create_model(name, num_classes=4, decoder=decoder).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, *size))
    assert output.logits.shape == (1, 4, *size)
    assert output.logits.dtype == torch.float32
    assert output.auxiliary_logits == ()


def test_padding_does_not_move_the_image() -> None:
    torch.manual_seed(0)
    model = create_model("exfuse_tiny", num_classes=4).eval()
    images = torch.randn(1, 3, 96, 128)
    images[:, :, 90:] = 0
    images[:, :, :, 120:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(images[:, :, :90, :120]).logits, model(images).logits[:, :, :90, :120])


def test_auxiliary_scores_come_in_training_only_and_at_stride_16() -> None:
    model = create_model("exfuse_tiny", num_classes=4).train()
    (auxiliary,) = model(torch.randn(2, 3, 64, 96)).auxiliary_logits
    assert auxiliary.shape == (2, 4, 4, 6)
    assert create_model("gcn_tiny", num_classes=4).train()(torch.randn(2, 3, 64, 64)).auxiliary_logits == ()


def test_scores_stay_float32_under_bfloat16_autocast() -> None:
    for decoder in ("full", "stride4"):
        model = create_model("exfuse_tiny", num_classes=4, decoder=decoder).train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(2, 3, 64, 64))
        assert output.logits.dtype == torch.float32
        assert output.auxiliary_logits[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("head", "width"),
    [
        (FullSizeHead(3, 3, 1, False, True), 3),
        (QuarterSizeHead(8, 3, 3, False, False), 8),
        (QuarterSizeHead(8, 3, 1, False, False), 8),
    ],
    ids=["the baseline's", "stride 4", "stride 4, narrow"],
)
def test_scores_are_computed_in_float32_under_autocast_not_just_stored_in_it(head: nn.Module, width: int) -> None:
    y = torch.randn(1, width, 8, 8)
    with torch.no_grad():
        first = head.refine2(head.upsample2(y)) if isinstance(head, FullSizeHead) else y
        expected = head(y)
        with torch.autocast("cpu", torch.bfloat16):
            found = head(y)
            coarse = head.refine2(head.upsample2(y)) if isinstance(head, FullSizeHead) else y
    assert (found - expected).abs().max() <= 8 * (coarse - first).abs().max() + 1e-5
    assert not torch.equal(found, found.bfloat16().float())


def test_float32_agrees_with_float64() -> None:
    torch.manual_seed(0)
    model = create_model("exfuse_tiny", num_classes=4).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        single = model(images).logits
        double = model.double()(images.double()).logits
    assert (single - double).abs().max() / double.abs().max() <= 1e-5


def test_unknown_names_and_arguments_are_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"'exfuse_resnet5O'.*'exfuse_resnet50'"):
        create_model("exfuse_resnet5O", num_classes=3)
    with pytest.raises(ConfigError, match=r"'dap_windw'.*'dap_window'"):
        create_model("exfuse_tiny", num_classes=3, dap_windw=3)


@pytest.mark.parametrize(
    "parts",
    [
        {"num_classes": 1},
        {"dap_window": 2},
        {"dap_window": 0},
        {"dap_window": 2, "dap_control_conv": True},
        {"num_classes": 256},
        {"gcn_kernel": 4},
        {"decoder_width": 0},
        {"decoder": "half"},
    ],
)
def test_values_out_of_range_are_refused(parts: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="exfuse_tiny"):
        create_model("exfuse_tiny", **({"num_classes": 3} | parts))


NUMBERS = {"num_classes", "gcn_kernel", "semantic_embedding_width", "dap_window", "decoder_width"}
OPTIONAL = {"semantic_embedding_width", "auxiliary_prediction"}
VALUES = {"a bool": True, "a number": 3, "a float": 3.0, "text": "3", "null": None, "a list": [3], "huge": 10**5000}


def is_allowed(argument: str, value: object) -> bool:
    if value is None:
        return argument in OPTIONAL
    return value == 3 and type(value) is int if argument in NUMBERS else type(value) is bool and argument != "decoder"


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("argument", ["num_classes", *option_types()])
def test_a_value_of_another_type_is_refused_by_name_and_true_is_no_number(argument: str, kind: str) -> None:
    arguments = {"num_classes": 3} | {argument: VALUES[kind]}
    allowed = is_allowed(argument, VALUES[kind])
    with torch.device("meta"), nullcontext() if allowed else pytest.raises(ConfigError, match=argument) as caught:
        create_model("exfuse_tiny", **arguments)
    assert allowed or len(str(caught.value)) < 300


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\bname\b.*\b7$"):
        create_model(7, num_classes=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [2**16, 2**31, 2**63, 2**70])
@pytest.mark.parametrize("argument", ["decoder_width", "gcn_kernel", "semantic_embedding_width", "dap_window"])
def test_a_number_that_no_memory_holds_is_refused(argument: str, value: int) -> None:
    value += argument in ("gcn_kernel", "dap_window")  # which are odd
    with pytest.raises(ConfigError, match="exfuse_tiny"):
        create_model("exfuse_tiny", num_classes=3, **{argument: value * 16})


@pytest.mark.parametrize("classes", ["1", "256", "300", "-1"])
def test_the_table_of_models_takes_the_classes_that_models_take(classes: str) -> None:
    outcome = typer.testing.CliRunner().invoke(build_app(), ["models", "--classes", classes])
    assert outcome.exit_code == 2
    assert not outcome.exception or isinstance(outcome.exception, SystemExit)
    with pytest.raises(ConfigError, match=rf"num_classes .*\b2 to 255\b.* {classes}$"):
        describe_models(int(classes))


def test_sizes_are_counted_without_allocating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "list_models", lambda: ["gcn_tiny", "exfuse_tiny"])
    baseline, whole = describe_models(num_classes=21)
    assert (baseline.name, whole.name) == ("gcn_tiny", "exfuse_tiny")
    model = create_model("gcn_tiny", num_classes=21)
    assert whole.parameters > baseline.parameters == count_parameters(model)
    assert whole.multiply_adds > baseline.multiply_adds == count_multiply_adds(model)
    assert model.training


class Constants(nn.Module):
    """What other people's backbones hold beside parameters; each kind is a model's name."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attribute":
            self.filter = torch.full((channels, 1, 1), 0.5)
        else:
            drawn = torch.rand(channels, 1, 1) if kind == "drawn anew" else torch.full((channels, 1, 1), 0.5)
            self.register_buffer("filter", drawn, persistent=kind == "drawn once")
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.same_weight = self.weight if kind == "shared" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fixed size" and x.shape[-1] % 7:
            raise AssertionError("Input height (64) doesn't match model (224).")
        if self.kind == "learns unseen" and self.training:
            self.filter = self.filter + x.detach().mean()
        return x * self.filter * self.weight


def fake_timm(reductions: list[int]) -> SimpleNamespace:
    channels = [4 * (index + 1) for index in range(len(reductions))]

    class Extractor(nn.Module):
        feature_info = SimpleNamespace(channels=lambda: channels, reduction=lambda: reductions)

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, count, 1), Constants(kind, count)) for count in channels
            )

        def forward(self, x: Tensor) -> list[Tensor]:
            pairs = zip(self.layers, reductions, strict=True)
            return [layer(nn.functional.avg_pool2d(x, reduction)) for layer, reduction in pairs]

    def create(name: str, *, features_only: bool, pretrained: bool) -> nn.Module:
        if name == "nothing":
            raise RuntimeError("Unknown model (nothing)")
        assert features_only
        assert not pretrained
        return Extractor(name)

    return SimpleNamespace(create_model=create)


def test_a_stage_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 0, 2, 2\)"):
        resnet.ResNet(resnet.BasicBlock, (2, 0, 2, 2))


def test_a_timm_feature_extractor_becomes_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm([2, 4, 4, 8, 16, 32]))
    model = create_model("exfuse_timm/anything", num_classes=3).eval()
    assert model.backbone.channels == (12, 16, 20, 24)
    assert model(torch.randn(1, 3, 40, 64)).logits.shape == (1, 3, 40, 64)
    with pytest.raises(ConfigError, match=r"timm/nothing.*Unknown model"):
        create_model("gcn_timm/nothing", num_classes=3)


def test_a_timm_model_that_keeps_channels_last_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = fake_timm([4, 8, 16, 32])
    plain = timm.create_model("x", features_only=True, pretrained=False)
    forward = type(plain).forward
    monkeypatch.setattr(type(plain), "output_fmt", "NHWC", raising=False)
    monkeypatch.setattr(type(plain), "forward", lambda self, x: [f.permute(0, 2, 3, 1) for f in forward(self, x)])
    timm.create_model = lambda name, **options: plain
    monkeypatch.setitem(sys.modules, "timm", timm)
    features = create_model("exfuse_timm/swin", num_classes=3).backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(feature.shape) for feature in features] == [
        (1, 4, 16, 24), (1, 8, 8, 12), (1, 12, 4, 6), (1, 16, 2, 3)
    ]  # fmt: skip


def test_a_timm_model_without_the_four_strides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm([16, 16, 16]))
    with pytest.raises(ConfigError, match=r"\[16, 16, 16\].*\[4, 8, 32\]"):
        create_model("exfuse_timm/plain_vit", num_classes=3)


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'exfuse\[timm\]'"):
        create_model("exfuse_timm/convnext_tiny", num_classes=3)


def info_of(name: str) -> ModelMetadata:
    names, palette = ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    options = options_of(name, {"decoder": "stride4", "decoder_width": 4})
    return ModelMetadata(name, options, names, palette, 255, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("kind", ["plain", "drawn once", "constant", "attribute"])
def test_a_timm_model_is_itself_again_with_what_its_state_dict_leaves_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm([4, 8, 16, 32]))
    info = info_of(f"exfuse_timm/{kind}")
    model = build_model(info)
    before = torch.get_rng_state()
    check_restorable(model, info)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.full_like(parameter, 0.1))
    save_pretrained(tmp_path / "model", model, info.to_json(), "")
    loaded, _ = load_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing from the caller's generator"
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model.eval()(images).logits)
    assert not [name for name, buffer in loaded.named_buffers() if buffer.is_meta]


@pytest.mark.parametrize("kind", ["drawn anew", "learns unseen", "shared", "fixed size"])
@pytest.mark.parametrize("supervised", [False, True])
def test_a_timm_model_that_cannot_be_saved_and_loaded_is_refused_before_training(
    kind: str, supervised: bool, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm([4, 8, 16, 32]))
    model = (f"model.name=exfuse_timm/{kind}", f"model.supervised_features={str(supervised).lower()}")
    config = load_config("demo", [f"data.root={pack}", f"output={tmp_path / 'run'}", *model])
    with pytest.raises(ConfigError, match=f"exfuse_timm/{kind}: "):
        train(config, False, Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("supervised", [False, True])
def test_a_timm_model_is_left_as_it_is_when_a_network_is_folded(
    supervised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = fake_timm([4, 8, 16, 32])
    create = timm.create_model

    def with_norm_before_convolution(*arguments: object, **options: object) -> nn.Module:
        extractor = create(*arguments, **options)
        for layer in extractor.layers:
            layer[0].bn1, layer[0].conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
            layer[0].forward = partial(pre_activated, layer[0])
        return extractor

    timm.create_model = with_norm_before_convolution
    monkeypatch.setitem(sys.modules, "timm", timm)
    torch.manual_seed(0)
    model = create_model("exfuse_timm/plain", num_classes=3, decoder="stride4", supervised_features=supervised)
    images = torch.randn(2, 3, 64, 64)
    model.train()(images)
    with torch.no_grad():
        expected, folded = model.eval()(images).logits, exfuse.fold(model)(images).logits
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def pre_activated(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.functional.conv2d(layer.conv1(layer.bn1(x).relu()), layer.weight, layer.bias)
