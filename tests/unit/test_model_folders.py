"""Model folders: what is written is recognised, what is changed is refused, and nothing is looked up unasked."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

import exfuse
from exfuse.errors import CheckpointError, ConfigError, ExFuseError
from exfuse.manifest import MANIFEST, write_manifest
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, find_model, verify_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from exfuse.predictor import Predictor
from exfuse.training.segmentation import load_weights

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {"decoder": "stride4", "decoder_width": 8, "gcn_kernel": 3}),
    class_names=("ground", "tree", "sky"),
    palette=((10, 20, 30), (200, 0, 0), (0, 200, 0)),
    ignore_index=255,
    image_mean=(0.4, 0.5, 0.6),
    image_std=(0.2, 0.25, 0.3),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pretrained(tmp_path / "model", build_model(INFO), INFO.to_json(), "# A card\n")
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
        assert str(folder / MANIFEST) in str(caught.value)
    (folder / name).write_bytes(content)
    open_model(folder)


def test_a_folder_without_a_manifest_opens_and_one_with_another_is_refused(folder: Path) -> None:
    digests = verify_model(folder)
    assert set(digests) == {WEIGHTS_FILE, CONFIG_FILE}
    (folder / MANIFEST).unlink()
    assert verify_model(folder) == digests
    load_pretrained(folder)
    write_manifest(folder, {CONFIG_FILE: digests[CONFIG_FILE]})
    with pytest.raises(CheckpointError, match=rf"manifest\.json.*{WEIGHTS_FILE}"):
        load_pretrained(folder)


def test_the_card_may_be_edited(folder: Path) -> None:
    (folder / CARD_FILE).write_text("# Other words\n")
    load_pretrained(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    value: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(INFO)
    with torch.no_grad():
        model.fuse3.refine.conv1.bias[2] = value
    before = (folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(CheckpointError, match=r"model: .*fuse3\.refine\.conv1\.bias"):
        save_pretrained(folder, model, INFO.to_json(), "")
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("exfuse.models.storage.pretrained.check_finite", lambda weights, place: None)
        save_pretrained(folder, model, INFO.to_json(), "")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*fuse3\.refine\.conv1\.bias"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, MANIFEST])
def test_a_pipe_in_a_model_folder_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}.*regular file"):
        load_pretrained(folder)


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the hub is asked for; it answers with the folder."""
    questions: list[dict[str, Any]] = []

    def answer(name: str, **options: Any) -> str:
        questions.append({"name": name, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return questions


@pytest.mark.parametrize(
    "name", ["run/t1", "run/model", "gone", "a/b/c", "./gone", "../gone/x", "~/x", "Runs/t1", "https://x/y", "hf:/a/b"]
)
def test_a_path_is_never_asked_of_the_hub(name: str, asked: list[dict[str, Any]]) -> None:
    for source in (name, Path(name)):
        for open_model in (find_model, load_pretrained, Predictor.from_pretrained):
            with pytest.raises(CheckpointError) as caught:
                open_model(source)
            assert re.search(rf"^{re.escape(str(source))}: .*no such", str(caught.value))
            assert "hf://" in str(caught.value)
    assert asked == []


def test_a_model_of_the_hub_is_named_as_one_and_comes_with_its_manifest(
    folder: Path, asked: list[dict[str, Any]]
) -> None:
    assert find_model("hf://someone/exfuse-camvid") == folder
    (question,) = asked
    assert question["name"] == "someone/exfuse-camvid"
    assert set(question["allow_patterns"]) == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["hf://someone/gone", "hf://", "hf://one/two/three", "hf://some one/x"])
def test_what_the_hub_does_not_have_is_one_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("Cannot reach the server")

    monkeypatch.setattr("huggingface_hub._snapshot_download.HfApi.repo_info", refuse)
    with pytest.raises(CheckpointError) as caught:
        find_model(name)
    assert re.search(f"^{re.escape(name)}: .*Hugging Face", str(caught.value))


BASELINE = {"semantic_embedding": False, "channel_resolution_embedding": False, "dap_window": 1}
EQUAL: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("exfuse_tiny", {}), ("exfuse_tiny", {"semantic_embedding": True, "dap_window": 3, "decoder": "full"})),
    (("exfuse_tiny", {"decoder_width": "wide"}), ("exfuse_tiny", {"auxiliary_prediction": True, "decoder_width": 27})),
    (("exfuse_tiny", {"dap_window": 1}), ("exfuse_tiny", {"dap_window": 1, "decoder_width": "wide"})),
    (("gcn_tiny", {}), ("exfuse_tiny", BASELINE)),
]
DIFFERENT: list[dict[str, Any]] = [
    {"gcn_kernel": 5},
    {"dap_window": 1},
    {"dap_control_conv": True},
    {"decoder": "stride4"},
    {"decoder_width": 26},
    {"decoder_width": "wide"},
    {"auxiliary_prediction": False},
    {"semantic_embedding_norm": False},
    {"supervised_features": True},
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_weights_are_taken_from_the_same_network_however_it_is_spelled(
    one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    for number, (given, wanted) in enumerate(((one, other), (other, one))):
        source, target = (
            replace(INFO, name=name, options=options_of(name, changes)) for name, changes in (given, wanted)
        )
        trained, model = build_model(source), build_model(target)
        save_pretrained(tmp_path / str(number), trained, source.to_json(), "")
        load_weights(model, target, tmp_path / str(number))
        expected = trained.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("width", "changes"), [("wide", {"decoder_width": "wide"}), ("narrow", {})])
def test_a_description_without_the_width_is_of_the_time_when_wide_was_the_default(
    width: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    info = replace(INFO, options=options_of(INFO.name, {"gcn_kernel": 3, **changes}))
    content = info.to_json()
    assert content["architecture"]["decoder_width"] == width
    assert ModelMetadata.from_json(content) == info
    del content["architecture"]["decoder_width"]
    found = ModelMetadata.from_json(content)
    assert found.options.decoder_width == "wide"
    save_pretrained(tmp_path / "model", build_model(info), content, "")
    if width == "wide":
        assert load_pretrained(tmp_path / "model")[1] == info
    else:
        with pytest.raises(CheckpointError, match="the weights cannot be loaded"):
            load_pretrained(tmp_path / "model")


@pytest.mark.parametrize("parts", DIFFERENT)
def test_weights_of_another_network_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    source, target = (replace(INFO, options=options_of(INFO.name, changes)) for changes in (parts, {}))
    save_pretrained(tmp_path / "model", build_model(source), source.to_json(), "")
    with pytest.raises(ConfigError) as caught:
        load_weights(build_model(target), target, tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert str(parts) in str(caught.value)


def described(**changes: Any) -> dict[str, Any]:
    keys = ("class_names", "palette", "image_mean", "image_std")
    return {key: getattr(INFO, key) for key in keys} | changes


@pytest.mark.parametrize("kind", ["new", "empty"])
def test_a_network_made_in_python_is_saved_and_opened(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = exfuse.create_model("gcn_tiny", num_classes=3, decoder="stride4")
    folder = tmp_path / "mine"
    if kind == "empty":
        folder.mkdir()
    before = torch.get_rng_state()
    exfuse.save_pretrained(model, folder, **described(metrics={"mean_iou": 0.5}))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    predictor = Predictor.from_pretrained(folder, engine="torch")
    assert predictor.info == replace(INFO, name="gcn_tiny", options=model.options, metrics={"mean_iou": 0.5})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    images = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - torch.tensor(INFO.image_mean).view(3, 1, 1)) / (
        torch.tensor(INFO.image_std).view(3, 1, 1)
    )
    with torch.inference_mode():
        expected = model.eval()(images).logits[0]
    np.testing.assert_allclose(predictor.logits(pixels), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "save_pretrained" in block)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "deploy.md", "exec"), {})  # noqa: S102 - our own text
    assert load_pretrained("mine")[1].class_names == ("road", "sky")


def test_saving_never_overwrites(tmp_path: Path) -> None:
    model = exfuse.create_model("gcn_tiny", num_classes=3, decoder="stride4")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("gone")
    exfuse.save_pretrained(model, tmp_path / "model", **described())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("file", "full", "link", "dangling", "model"):
        with pytest.raises(CheckpointError, match=f"{tmp_path / name}: .*already"):
            exfuse.save_pretrained(model, tmp_path / name, **described())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ("a", "b")},
        {"palette": ((0, 0, 0), (0, 0, 999), (1, 1, 1))},
        {"palette": ()},
        {"palette": ((0.5, 0.2, 0.0), (0, 0, 0), (1, 1, 1))},
        {"class_names": ("a", "a", "b")},
        {"class_names": ("a", " ", "b")},
        {"image_mean": (123.675, 116.28, 103.53)},
        {"image_std": (58.395, 57.12, 57.375)},
        {"image_std": (0.2, 0.2, 0.0)},
        {"image_mean": (0.5, 0.5)},
        {"ignore_index": 300},
        {"metrics": {"a": object()}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrong_description_is_refused_and_nothing_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    model = exfuse.create_model("gcn_tiny", num_classes=3, decoder="stride4")
    with pytest.raises(ExFuseError):
        exfuse.save_pretrained(model, tmp_path / "model", **described(**changes))
    assert list(tmp_path.iterdir()) == []


def test_only_what_can_be_built_again_is_saved(tmp_path: Path) -> None:
    made = exfuse.create_model("exfuse_tiny", num_classes=3, decoder="stride4", gcn_kernel=3)
    changed = exfuse.create_model("exfuse_tiny", num_classes=3, decoder="stride4", gcn_kernel=3)
    changed.fuse2 = torch.nn.Identity()
    by_hand = exfuse.ExFuse(made.backbone, 3, made.options)
    for model in (exfuse.fold(made), changed, by_hand, torch.nn.Linear(1, 1)):
        with pytest.raises(ConfigError):
            exfuse.save_pretrained(model, tmp_path / "model", **described())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_changed_or_added_to_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    for theirs in ("notes.txt", CONFIG_FILE, CARD_FILE):
        folder = tmp_path / theirs / "model"
        save_pretrained(folder, torch.nn.Linear(2, 2), {"old": 1}, "card")
        (folder / theirs).write_text("mine")
        save_pretrained(folder, torch.nn.Linear(2, 2), {"new": 1}, "card")
        save_pretrained(folder, torch.nn.Linear(2, 2), {"newer": 1}, "card")
        assert json.loads((folder / CONFIG_FILE).read_text()) == {"newer": 1}
        assert (folder.with_name("model_2") / theirs).read_text() == "mine"
        assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "model_2"]
