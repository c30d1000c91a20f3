import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from exfuse.drawing import blend, colorize, with_legend
from exfuse.errors import CheckpointError, ConfigError, DataError
from exfuse.inference import tta
from exfuse.inference.engines.torch_eager import TorchEngine, class_scores, most_likely
from exfuse.inference.tta import NO_TTA
from exfuse.manifest import MANIFEST
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from exfuse.predictor import Prediction, Predictor

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {"gcn_kernel": 5, "dap_window": 3, "decoder": "stride4"}),
    class_names=("ground", "tree", "house", "car", "sky"),
    palette=((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200), (220, 220, 0)),
    ignore_index=255,
    image_mean=(0.4, 0.5, 0.6),
    image_std=(0.2, 0.25, 0.3),
    metrics={"mean_iou": 0.25, "protocol": {"scales": [1.0]}},
)
HEIGHT, WIDTH = 50, 71


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    save_pretrained(folder, build_model(INFO), INFO.to_json(), "# A card\n")
    return folder


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, engine="torch")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (10, 15, 3)), np.ones((5, 5, 1)))[:HEIGHT, :WIDTH].astype(np.uint8)


@pytest.fixture
def damaged(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to be damaged; without the manifest, which would tell before all else."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        if path.name != MANIFEST:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def prediction_of(labels: list[list[int]], image: np.ndarray | None = None) -> Prediction:
    values = np.array(labels, dtype=np.uint8)
    return Prediction(np.zeros((*values.shape, 3), np.uint8) if image is None else image, values, INFO)


def pixel_wise(images: Tensor) -> Tensor:
    """A network that sees each pixel alone: four classes, scored by sums and differences of its channels."""
    red, green, blue = images.unbind(1)
    return torch.stack([red, green - blue, blue + red, -green], dim=1)


def left_is_brighter(images: Tensor) -> Tensor:
    """A network for which it matters where a pixel is."""
    return pixel_wise(images) * torch.arange(images.shape[-1], 0, -1)


def numpy_softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_a_single_pass_gives_the_logits_themselves():
    images = torch.randn(2, 3, 5, 7)
    assert torch.equal(class_scores(pixel_wise, images, NO_TTA), pixel_wise(images))


def test_a_flip_is_undone_exactly():
    def decided(images: Tensor) -> Tensor:
        winners = pixel_wise(images).argmax(dim=1)
        return torch.nn.functional.one_hot(winners, 4).movedim(-1, 1) * 1e4  # probabilities of exactly 0 and 1

    images = torch.randn(2, 3, 5, 7)
    scores = class_scores(decided, images, tta.TestTimeAugmentation(flip=True))
    assert torch.equal(scores, decided(images) / 1e4)


def test_flipped_scores_are_the_mean_of_both_views():
    images = torch.randn(2, 3, 5, 7)
    scores = class_scores(left_is_brighter, images, tta.TestTimeAugmentation(flip=True))
    plain = numpy_softmax(left_is_brighter(images).numpy())
    mirrored = numpy_softmax(left_is_brighter(torch.from_numpy(images.numpy()[..., ::-1].copy())).numpy())[..., ::-1]
    np.testing.assert_allclose(scores, (plain + mirrored) / 2, rtol=1e-5, atol=1e-7)
    assert np.abs(plain - mirrored).max() > 0.1


def test_scales_and_flips_are_averaged_as_probabilities():
    seen, answers = [], torch.randn(4, 3).tolist()

    def answer_in_turn(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return torch.tensor(answers[len(seen) - 1])[None, :, None, None].expand(-1, -1, *images.shape[2:])

    augmentation = tta.TestTimeAugmentation(scales=(0.5, 1.5), flip=True)
    scores = class_scores(answer_in_turn, torch.zeros(1, 3, 9, 14), augmentation)
    assert seen == [(1, 3, 4, 7)] * 2 + [(1, 3, 14, 21)] * 2
    expected = numpy_softmax(np.array(answers)).mean(axis=0)
    assert scores.shape == (1, 3, 9, 14)
    np.testing.assert_allclose(scores, np.broadcast_to(expected[:, None, None], (1, 3, 9, 14)), rtol=1e-5)


@pytest.mark.parametrize(
    ("scales", "flip", "passes"),
    [
        ((1.0,), False, 1),
        ((1.0,), True, 2),
        ((0.75, 1.0, 1.25), False, 3),
        ((0.75, 1.0, 1.25), True, 6),
        ((2.0,), True, 2),
    ],
)
def test_passes_is_the_number_of_times_the_network_is_used(scales: tuple[float, ...], flip: bool, passes: int):
    calls = []

    def counting(images: Tensor) -> Tensor:
        calls.append(images.shape)
        return pixel_wise(images)

    augmentation = tta.TestTimeAugmentation(scales, flip)
    class_scores(counting, torch.randn(1, 3, 6, 8), augmentation)
    assert augmentation.passes == len(calls) == passes


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.3, 2.0])
def test_another_scale_of_a_smooth_image_scores_alike(scale: float):
    y, x = torch.meshgrid(torch.linspace(-2, 2, 41), torch.linspace(-2, 2, 53), indexing="ij")
    images = torch.stack([x, y, x * y / 2])[None]
    scores = class_scores(pixel_wise, images, tta.TestTimeAugmentation(scales=(scale,)))
    assert scores.shape == (1, 4, 41, 53)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(1, 41, 53))
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(scores[inner], pixel_wise(images).softmax(dim=1)[inner], atol=0.01, rtol=0)


def test_an_image_of_one_pixel_survives_a_small_scale():
    images = torch.randn(1, 3, 1, 1)
    scores = class_scores(pixel_wise, images, tta.TestTimeAugmentation(scales=(0.1,)))
    torch.testing.assert_close(scores, pixel_wise(images).softmax(dim=1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("values", [2, 3, 1000])
def test_most_likely_is_the_first_of_the_largest(values: int, memory_format: torch.memory_format):
    scores = torch.randint(0, values, (2, 6, 30, 40), generator=torch.Generator().manual_seed(0)).float()
    labels = most_likely(scores.contiguous(memory_format=memory_format))
    assert labels.dtype == torch.uint8
    np.testing.assert_array_equal(labels, scores.numpy().argmax(axis=1))


def test_most_likely_knows_as_many_classes_as_a_byte():
    scores = torch.zeros(1, 255, 1, 2)
    scores[0, 254, 0, 0] = scores[0, 128, 0, 1] = 1
    assert most_likely(scores).tolist() == [[[254, 128]]]


def test_a_path_a_picture_and_an_array_give_the_same_labels(predictor: Predictor, pixels: np.ndarray, tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = predictor(pixels)
    assert (expected.labels.shape, expected.labels.dtype) == ((HEIGHT, WIDTH), np.uint8)
    assert len(np.unique(expected.labels)) > 1
    for image in (path, str(path), Image.fromarray(pixels), Image.open(path)):
        prediction = predictor(image)
        np.testing.assert_array_equal(prediction.labels, expected.labels)
        np.testing.assert_array_equal(prediction.image, pixels)


def test_a_picture_in_another_mode_is_seen_in_rgb(predictor: Predictor, pixels: np.ndarray):
    transparent = Image.fromarray(pixels).convert("RGBA")
    np.testing.assert_array_equal(predictor(transparent).labels, predictor(pixels).labels)


def test_a_file_is_turned_upright(predictor: Predictor, pixels: np.ndarray, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(predictor(tmp_path / "a.png").labels, predictor(pixels).labels)


@pytest.mark.usefixtures("every_torch_warning")
def test_views_of_arrays_and_of_pictures_are_segmented(predictor: Predictor, pixels: np.ndarray):
    expected = predictor(pixels).labels
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    for image in (mirrored[:, ::-1], np.asfortranarray(pixels), np.asarray(Image.fromarray(pixels))):
        np.testing.assert_array_equal(predictor(image).labels, expected)


def test_labels_are_those_of_the_network_on_normalised_pixels(
    predictor: Predictor, model_folder: Path, pixels: np.ndarray
):
    normalised = (pixels / 255 - np.array(INFO.image_mean)) / np.array(INFO.image_std)
    images = torch.from_numpy(normalised.transpose(2, 0, 1)[None]).float()
    model, _ = load_pretrained(model_folder)
    with torch.no_grad():
        expected = model(images).logits[0].numpy()
    scores = predictor.logits(pixels)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(predictor(pixels).labels, scores.argmax(axis=0))


def test_a_flipped_average_does_not_know_left_from_right(model_folder: Path, pixels: np.ndarray):
    augmentation = tta.TestTimeAugmentation(scales=(1.0, 1.5), flip=True)
    predictor = Predictor.from_pretrained(model_folder, augmentation=augmentation)
    scores, mirrored = predictor.probabilities(pixels), predictor.probabilities(pixels[:, ::-1])[..., ::-1]
    np.testing.assert_allclose(scores.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(scores, mirrored, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="logits"):
        predictor.logits(pixels)


def test_probabilities_are_the_softmax_of_the_logits(predictor: Predictor, pixels: np.ndarray):
    expected = torch.from_numpy(predictor.logits(pixels)).double().softmax(dim=0).numpy()
    found = predictor.probabilities(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    confidence = predictor(pixels, confidence=True).confidence
    np.testing.assert_allclose(found.max(axis=0), confidence, rtol=1e-5)


def test_an_image_is_taken_in_every_form(predictor: Predictor, pixels: np.ndarray, tmp_path: Path):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = predictor(pixels).labels
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, Image.open(path)]
        for source in sources:
            np.testing.assert_array_equal(predictor(source).labels, expected)
    for wrong in (None, 3, {"image": path}):
        with pytest.raises(DataError, match=type(wrong).__name__):
            predictor(wrong)
    with pytest.raises(DataError, match="the image"):
        predictor(b"no image")
    with path.open("rb") as file:
        file.seek(10)
        with pytest.raises(DataError, match=r"image\.png"):
            predictor(file)


@pytest.mark.parametrize("confidence", [False, True])
def test_a_list_of_images_is_computed_in_batches_of_one_size(
    predictor: Predictor, confidence: bool, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (40, 50), (40, 50), (32, 64), (40, 50)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    batches, name = [], "scores" if confidence else "labels"
    compute = getattr(predictor.engine, name)
    monkeypatch.setattr(predictor.engine, name, lambda batch: (batches.append(batch.shape[:3]), compute(batch))[1])
    monkeypatch.setattr("exfuse.predictor.BATCH_PIXELS", 2 * 40 * 50)
    found = predictor(images, confidence)
    assert batches == [(2, 40, 50), (1, 40, 50), (1, 32, 64), (1, 40, 50)]
    monkeypatch.undo()
    for image, prediction in zip(images, found, strict=True):
        alone = predictor(image, confidence)
        assert (prediction.labels == alone.labels).mean() > 0.999
        np.testing.assert_array_equal(prediction.image, image)
        assert (prediction.confidence is None) == (not confidence)
    assert predictor([]) == []
    assert [one.labels.shape for one in predictor((images[0],))] == [(40, 50)]


def test_a_notebook_shows_the_overlay(predictor: Predictor, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    prediction = predictor(pixels)
    picture = Image.open(io.BytesIO(prediction._repr_png_()))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(prediction.overlay()))
    monkeypatch.setattr("exfuse.predictor.NOTEBOOK_SIDE", 20)
    small = Image.open(io.BytesIO(prediction._repr_png_()))
    assert small.height < picture.height


def test_half_precision_gives_float_scores_that_are_nearly_the_same(model_folder: Path, pixels: np.ndarray):
    full = Predictor.from_pretrained(model_folder, "torch").logits(pixels)
    half = Predictor.from_pretrained(model_folder, "torch", precision="bf16").logits(pixels)
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    assert np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_the_network_is_in_eval_mode(model_folder: Path):
    model, info = load_pretrained(model_folder)
    assert not model.training
    assert not TorchEngine(model.train(), info).model.training


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 1), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.int64),
        np.zeros((4, 5, 3), bool),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_that_is_no_rgb_image_is_refused(predictor: Predictor, array: np.ndarray):
    with pytest.raises(DataError) as raised:
        predictor(array)
    assert str(raised.value).endswith(f" {array.dtype} {array.shape}")


def test_a_file_that_is_no_image_is_refused(predictor: Predictor, tmp_path: Path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png: .*readable"):
        predictor(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"gone\.png: .*no such"):
        predictor(str(tmp_path / "gone.png"))


def test_the_mask_holds_the_labels_and_shows_the_palette(predictor: Predictor, pixels: np.ndarray, tmp_path: Path):
    prediction = predictor(pixels)
    prediction.mask().save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), prediction.labels)
        np.testing.assert_array_equal(np.array(mask.convert("RGB")), np.array(INFO.palette)[prediction.labels])


def test_the_mask_of_every_label_survives_a_file(tmp_path: Path):
    labels = np.arange(254, dtype=np.uint8).reshape(2, 127)
    info = replace(INFO, palette=tuple((index, 0, 255 - index) for index in range(254)))
    Prediction(np.zeros((2, 127, 3), np.uint8), labels, info).mask().save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        np.testing.assert_array_equal(np.array(mask), labels)


def test_fractions_of_all_classes_add_up_to_one(predictor: Predictor, pixels: np.ndarray):
    prediction = predictor(pixels)
    fractions = prediction.class_fractions()
    assert tuple(fractions) == INFO.class_names
    assert sum(fractions.values()) == pytest.approx(1, abs=1e-12)
    for index, fraction in enumerate(fractions.values()):
        assert fraction == pytest.approx((prediction.labels == index).mean(), abs=1e-12)


def test_fractions_of_an_example():
    fractions = prediction_of([[0, 0, 4], [1, 0, 4]]).class_fractions()
    assert fractions == {"ground": 3 / 6, "tree": 1 / 6, "house": 0, "car": 0, "sky": 2 / 6}


def test_the_overlay_has_a_legend_of_the_classes_found():
    labels = np.zeros((40, 120), np.uint8)
    labels[:, 60:] = 3
    image = np.full((40, 120, 3), 100, np.uint8)
    overlay = Prediction(image, labels, INFO).overlay(opacity=0.5)
    assert overlay.mode == "RGB"
    assert overlay.width == 120
    assert overlay.height > 40
    picture, legend = np.split(np.array(overlay).astype(int), [40])
    expected = (image.astype(int) + np.array(INFO.palette)[labels]) / 2
    assert np.abs(picture - expected).max() <= 1
    shown = {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert shown & set(INFO.palette) == {INFO.palette[0], INFO.palette[3]}
    assert (255, 255, 255) in shown


@pytest.mark.parametrize(("opacity", "of_labels"), [(0.0, False), (1.0, True)])
def test_opacity_goes_from_the_image_to_the_colours(opacity: float, of_labels: bool):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    labels = np.random.default_rng(0).integers(0, 5, (6, 8), dtype=np.uint8)
    blended = np.array(blend(image, labels, INFO.palette, opacity))
    np.testing.assert_array_equal(blended, np.array(INFO.palette)[labels] if of_labels else image)


def test_labels_beyond_the_palette_are_black():
    colors = colorize(np.array([[0, 1, 4, 5, 255]], np.uint8), INFO.palette)
    assert colors.tolist() == [[[10, 20, 30], [200, 0, 0], [220, 220, 0], [0, 0, 0], [0, 0, 0]]]


def test_a_long_legend_takes_as_many_rows_as_it_needs():
    entries = [(f"class number {index}", (index, 100, 200)) for index in range(20)]
    picture = Image.new("RGB", (300, 10), "black")
    canvas = np.array(with_legend(picture, entries))
    assert canvas.shape[1] == 300
    assert canvas.shape[0] > with_legend(picture, entries[:2]).height
    for _, color in entries:
        rows, columns = np.nonzero((canvas == color).all(axis=-1))
        assert len(rows) >= 100, "each patch is whole"
        assert rows.min() >= 10
        assert columns.max() - columns.min() < 20


def test_an_unknown_engine_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"'tensorrt'.*auto, compile, onnxruntime, openvino"):
        Predictor.from_pretrained(tmp_path / "gone", engine="tensorrt")


def test_a_model_folder_gives_back_what_was_saved(model_folder: Path):
    assert {path.name for path in model_folder.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, MANIFEST}
    assert (model_folder / CARD_FILE).read_text() == "# A card\n"
    model, info = load_pretrained(str(model_folder))
    assert info == INFO
    torch.manual_seed(0)
    for name, value in build_model(INFO).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_saving_replaces_an_older_model_whole(damaged: Path):
    info = replace(INFO, metrics={"mean_iou": 0.75})
    save_pretrained(damaged, build_model(INFO), info.to_json(), "# Another card\n")
    assert {path.name for path in damaged.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, MANIFEST}
    assert load_pretrained(damaged)[1] == info


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/model: .*Not a directory"):
        save_pretrained(tmp_path / "file" / "model", torch.nn.Linear(1, 1), INFO.to_json(), "")


def test_a_missing_model_folder_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"gone: .*no such"):
        load_pretrained(tmp_path / "gone")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_of_a_model_is_named(damaged: Path, name: str):
    (damaged / name).unlink()
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(damaged)
    assert str(damaged / name) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_a_broken_description_is_named(damaged: Path, content: bytes):
    (damaged / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="readable") as raised:
        load_pretrained(damaged)
    assert str(damaged / CONFIG_FILE) in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", []),
        ("architecture.name", "exfuse_tyni"),
        ("architecture.gcn_kernal", 7),
        ("architecture.gcn_kernel", "7"),
        ("architecture.gcn_kernel", 4),
        ("architecture.dap_window", -3),
        ("architecture.decoder", "half"),
        ("architecture.num_classes", "many"),
        ("architecture.num_classes", float("inf")),
        ("architecture.num_classes", 4),
        ("id2label", {"0": "ground"}),
        ("id2label", {str(index): "name" for index in range(1, 6)}),
        ("palette", [[0, 0, 0]]),
        ("palette", [[0, 0]] * 5),
        ("palette", [[0, 0, 999]] * 5),
        ("ignore_index", None),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_std", "wide"),
        ("image_std", [0.2, 0.2, 0.0]),
        ("metrics", 7),
    ],
)
def test_a_description_with_a_wrong_value_is_named(damaged: Path, key: str, value: object):
    content = json.loads((damaged / CONFIG_FILE).read_text())
    section, _, entry = key.rpartition(".")
    (content[section] if section else content)[entry] = value
    (damaged / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(damaged)
    assert str(damaged / CONFIG_FILE) in str(raised.value)


@pytest.mark.parametrize("key", ["architecture", "id2label", "palette", "ignore_index", "image_mean", "image_std"])
def test_a_description_that_lacks_an_entry_is_named(damaged: Path, key: str):
    content = json.loads((damaged / CONFIG_FILE).read_text())
    del content[key]
    (damaged / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{CONFIG_FILE}.*'{key}'"):
        load_pretrained(damaged)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"x" + content[9:],
        lambda content: np.random.default_rng(0).bytes(1000),
    ],
    ids=["empty", "half", "last_byte", "huge_header", "header_no_json", "random"],
)
def test_broken_weights_are_named(damaged: Path, damage):
    path = damaged / WEIGHTS_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="weights") as raised:
        load_pretrained(damaged)
    assert str(path) in str(raised.value)


def test_weights_of_another_architecture_are_refused(damaged: Path):
    content = json.loads((damaged / CONFIG_FILE).read_text())
    content["architecture"]["gcn_kernel"] = 7
    (damaged / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS_FILE}: .*weight .*\(5, 16, 1, 5\)"):
        load_pretrained(damaged)
