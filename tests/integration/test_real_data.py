"""A few real photographs through the whole way: train, evaluate, predict."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from exfuse.data.datasets import open_dataset
from support.tiny_run import TINY, call_exfuse, losses_of

IMAGES = {"train": 8, "val": 4}


def describe_few(data: Path, folder: Path) -> Path:
    """Writes a dataset file for the first images of a data set, with its pictures where they are."""
    root = folder / "few"
    root.mkdir()
    for name in ("images", "masks"):
        (root / name).symlink_to(data / name, target_is_directory=True)
    for split, count in IMAGES.items():
        names = (data / f"{split}.txt").read_text(encoding="utf-8").split()[:count]
        (root / f"{split}.txt").write_text("\n".join(names), encoding="utf-8")
    classes = json.loads((data / "classes.json").read_text(encoding="utf-8"))["classes"]
    description = {
        "root": "few",
        "format": "lists",
        "splits": {split: f"{split}.txt" for split in IMAGES},
        "names": [row["name"] for row in classes],
        "palette": [row["color"] for row in classes],
    }
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(description), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "classes"), [("camvid", 11), ("ccp", 12)])
def test_real_photographs_can_be_trained_on_scored_and_segmented(
    name: str, classes: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data: Path = request.getfixturevalue(name)
    few, run = describe_few(data, tmp_path), tmp_path / "run"
    trained = call_exfuse("train", "camvid_resnet18", *TINY, "epochs=1", f"data.root={few}", f"output={run}")
    assert trained.code == 0, trained.errors
    assert len(losses_of(run)) == 2
    assert all(math.isfinite(loss) for loss in losses_of(run))

    scores = tmp_path / "scores.json"
    scored = call_exfuse("evaluate", run / "model", few, "-o", scores)
    assert scored.code == 0, scored.errors
    content = json.loads(scores.read_text(encoding="utf-8"))
    split = open_dataset(few, "val")
    labelled = sum(int((sample.mask != 255).sum()) for sample in split)
    assert sum(map(sum, content["confusion"])) == labelled > 100_000
    assert [row["name"] for row in content["classes"]] == list(split.classes.names)
    assert len(content["classes"]) == classes
    assert 0 < content["pixel_accuracy"] < 1

    photos = [entry.image for entry in split.entries]
    segmented = call_exfuse("predict", run / "model", *photos, "-o", tmp_path / "out")
    assert segmented.code == 0, segmented.errors
    for photo in photos:
        with Image.open(photo) as image, Image.open(tmp_path / "out" / "masks" / f"{photo.stem}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == image.size
            assert np.array(mask).max() < classes
