"""The archive for PASCAL VOC's server, against a checker written from the server's rules, and what that refuses."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exfuse.data.classes import VOC_NAMES, voc_palette
from exfuse.errors import DataError
from exfuse.evaluation.submission import check_voc_submission, voc_test_images, write_voc_submission
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.predictor import Predictor

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
SIZES = {"2008_01": (40, 50), "2010_02": (33, 64), "2012_03": (64, 32)}  # height, width


def predictor(names: tuple[str, ...] = VOC_NAMES) -> Predictor:
    info = ModelMetadata(
        name="exfuse_tiny",
        options=options_of("exfuse_tiny", {"decoder": "stride4", "decoder_width": 8, "gcn_kernel": 3}),
        class_names=names,
        palette=voc_palette(len(names)),
        ignore_index=255,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
    )
    return Predictor(TorchEngine(build_model(info), info), info)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(SIZES) + "\n")
    return root


def check_as_the_server_does(archive: Path) -> None:
    """Unpacks results/VOC2012/Segmentation/comp6_test_cls/NAME.png: indexed, VOC's colour map, labels up to 20."""
    with tarfile.open(archive) as tar:
        names = [entry.name for entry in tar if entry.isfile()]
        assert sorted(names) == sorted(f"{FOLDER}/{name}.png" for name in SIZES)
        for name, size in SIZES.items():
            content = tar.extractfile(f"{FOLDER}/{name}.png")
            assert content is not None
            image = Image.open(io.BytesIO(content.read()))
            assert (image.format, image.mode, image.size) == ("PNG", "P", size[::-1])
            labels = np.array(image)
            assert labels.max() <= 20
            rgb = np.array(image.convert("RGB"))
            for label in np.unique(labels):
                assert (rgb[labels == label] == voc_palette(21)[label]).all()


def test_the_archive_is_what_the_server_takes(voc: Path, tmp_path: Path) -> None:
    images = voc_test_images(voc, "test")
    seen: list[int] = []
    archive = tmp_path / "out" / "results.tgz"
    network = predictor()
    write_voc_submission(network, images, "test", archive, lambda: seen.append(1))
    assert len(seen) == 3
    check_as_the_server_does(archive)
    check_voc_submission(archive, images, "test")
    assert [path.name for path in archive.parent.iterdir()] == ["results.tgz"]
    with tarfile.open(archive) as tar:
        content = tar.extractfile(f"{FOLDER}/2008_01.png")
        assert content is not None
        labels = np.array(Image.open(io.BytesIO(content.read())))
    np.testing.assert_array_equal(labels, network(voc / "JPEGImages" / "2008_01.jpg").labels)


def test_a_model_of_other_classes_cannot_be_submitted(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\b3 classes\b.*\b21\b"):
        write_voc_submission(predictor(("a", "b", "c")), voc_test_images(voc, "test"), "test", tmp_path / "results.tgz")


def test_other_colours_are_refused_before_anything_is_predicted(voc: Path, tmp_path: Path) -> None:
    network = predictor()
    network.info = replace(network.info, palette=((1, 2, 3), *network.info.palette[1:]))
    with pytest.raises(DataError, match="palette"):
        write_voc_submission(network, voc_test_images(voc, "test"), "test", tmp_path / "out" / "results.tgz")
    assert not (tmp_path / "out").exists()


def test_a_submission_that_fails_leaves_nothing(voc: Path, tmp_path: Path) -> None:
    images = voc_test_images(voc, "test")
    images[1].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2010_02\.jpg: .*readable"):
        write_voc_submission(predictor(), images, "test", tmp_path / "out" / "results.tgz")
    assert not list((tmp_path / "out").iterdir())


def test_a_list_of_windows_editors_is_read(voc: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "test.txt"
    names = path.read_text().split()
    path.write_text("\r\n".join(names), encoding="utf-8-sig")
    assert [image.name for image in voc_test_images(voc, "test")] == names


def test_missing_lists_and_images_are_named(voc: Path) -> None:
    with pytest.raises(DataError, match=r"val\.txt: .*readable"):
        voc_test_images(voc, "val")
    (voc / "JPEGImages" / "2010_02.jpg").unlink()
    with pytest.raises(DataError, match=r"2010_02\.jpg: .*test\.txt"):
        voc_test_images(voc, "test")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2008_01\n2012_03\n2008_01\n")
    with pytest.raises(DataError, match=r"test\.txt: .*'2008_01'"):
        voc_test_images(voc, "test")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("../../2008_01\n")
    with pytest.raises(DataError, match=r"test\.txt: .*'\.\./\.\./2008_01'"):
        voc_test_images(voc, "test")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test\.txt: .*no image"):
        voc_test_images(voc, "test")


def mask_bytes(
    size: tuple[int, int], label: int = 3, mode: str = "P", palette: tuple = voc_palette(21), form: str = "PNG"
) -> bytes:
    image = Image.fromarray(np.full(size, label, dtype=np.uint8))
    if mode == "P":
        image = image.convert("P")
        image.putpalette([value for color in palette for value in color])
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


GOOD = {f"{FOLDER}/{name}.png": mask_bytes(size) for name, size in SIZES.items()}
FIRST = f"{FOLDER}/2008_01.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: None}, r"\b1 images .*2008_01\.png"),
        ({f"{FOLDER}/2099_99.png": mask_bytes((4, 4))}, r"2099_99\.png"),
        ({FIRST: mask_bytes((40, 50), mode="L")}, r"2008_01\.png.*mode is L\b"),
        ({FIRST: mask_bytes((50, 40))}, r"2008_01\.png.*40 x 50\b"),
        ({FIRST: mask_bytes((40, 50), label=21)}, r"2008_01\.png.*label 21\b.*0 to 20\b"),
        ({FIRST: mask_bytes((40, 50), palette=voc_palette(21)[::-1])}, r"2008_01\.png.*palette"),
        ({FIRST: b"no picture"}, r"2008_01\.png.*readable PNG"),
        ({FIRST: mask_bytes((20_000, 1))}, r"2008_01\.png.*\b16,384\b"),
        ({FIRST: mask_bytes((40, 50), form="TIFF")}, r"2008_01\.png.*not an indexed PNG"),
    ],
)
def test_the_check_refuses(change: dict[str, bytes | None], message: str, voc: Path, tmp_path: Path) -> None:
    archive = tmp_path / "results.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (GOOD | change).items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=message):
        check_voc_submission(archive, voc_test_images(voc, "test"), "test")


def test_a_file_that_is_no_archive_is_refused(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "results.tgz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"results\.tgz: .*readable"):
        check_voc_submission(tmp_path / "results.tgz", voc_test_images(voc, "test"), "test")
