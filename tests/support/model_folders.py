"""A model folder to damage."""

from pathlib import Path

import pytest

from exfuse.manifest import MANIFEST
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained

INFO = ModelMetadata(
    name="exfuse_tiny",
    options=options_of("exfuse_tiny", {"decoder": "stride4", "decoder_width": 8, "gcn_kernel": 3}),
    class_names=("a", "b", "c"),
    palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    ignore_index=255,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.25, 0.25, 0.25),
)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", build_model(INFO), INFO.to_json(), "")
    (tmp_path / "model" / MANIFEST).unlink()  # as others make such folders; it would tell of each change below
    return tmp_path / "model"
