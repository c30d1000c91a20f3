"""timm's own backbones, run by `make test-timm`: elsewhere the library is not installed, for it needs torchvision."""

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import exfuse
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import check_restorable, load_pretrained, save_pretrained
from support.tiny_run import TINY, call_exfuse

if find_spec("timm") is None:
    pytest.skip("timm is not installed; `make test-timm` runs this", allow_module_level=True)

from torchvision_operators import declare_torchvision_operators

declare_torchvision_operators()
# What timm's and torchvision's own code is warned about is none of ours.
pytestmark = [pytest.mark.filterwarnings("default")]

# With buffers outside the state dict: resnetblur18, tresnet_m, tiny_vit_5m_224, and the relative positions of swin.
NAMES = [
    "convnext_atto", "ecaresnet50t", "resnetblur18", "tresnet_m", "tiny_vit_5m_224", "hrnet_w18_small",
    "mobilenetv3_small_050", "resnetaa34d", "regnetx_002", "efficientnet_b0", "resnet18",
]  # fmt: skip


def info_of(name: str, **parts: object) -> ModelMetadata:
    names, palette = ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    narrow = {"decoder": "stride4", "decoder_width": 4, "gcn_kernel": 3}
    model = f"exfuse_timm/{name}"
    return ModelMetadata(model, options_of(model, narrow | parts), names, palette, 255, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_is_built_trained_saved_loaded_and_folded(name: str, supervised: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    info = info_of(name, supervised_features=supervised)
    model = build_model(info)
    check_restorable(model, info)
    output = model.train()(torch.randn(2, 3, 64, 96))
    sum(scores.square().mean() for scores in (output.logits, *output.auxiliary_logits)).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    torch.optim.SGD(model.parameters(), 0.01).step()
    save_pretrained(tmp_path / "model", model, info.to_json(), "")
    loaded, _ = load_pretrained(tmp_path / "model")
    assert not [value for value in itertools.chain(loaded.parameters(), loaded.buffers()) if value.is_meta]
    images = torch.randn(1, 3, 70, 97)
    with torch.no_grad():
        expected = model.eval()(images).logits
        assert torch.equal(loaded(images).logits, expected)
        folded = exfuse.fold(loaded)(images).logits
    assert float((folded - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_a_run_with_a_backbone_of_timm_is_trained_reported_and_used(pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = ("model.name=exfuse_timm/resnetblur18", "epochs=1")
    outcome = call_exfuse("train", "demo", *TINY, *model, f"data.root={pack}", f"output={run}")
    assert outcome.code == 0, outcome.errors
    assert (run / "report.html").is_file()
    outcome = call_exfuse("predict", run / "model", pack / "images", "-o", tmp_path / "predicted", "--engine", "torch")
    assert outcome.code == 0, outcome.errors
    again = call_exfuse("train", "demo", *TINY, *model, f"data.root={pack}", f"output={tmp_path / 'next'}",
                        f"model.weights={run / 'model'}")  # fmt: skip
    assert again.code == 0, again.errors
