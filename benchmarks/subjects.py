"""The networks of the benchmarks of engines and peers."""

from typing import Any

from exfuse.models.options import options_of
from exfuse.models.storage.metadata import ModelMetadata

CLASSES = 21

# Ours, all on ResNet-101 with g = 7. "wide" is D = K * k * k throughout; "narrow" keeps K channels up to the last
# step, as the GCN baseline does.
OURS: dict[str, dict[str, Any]] = {
    "full wide": {"decoder": "full", "decoder_width": "wide"},
    "full narrow": {"decoder": "full", "decoder_width": "narrow"},
    "stride4 wide": {"decoder": "stride4", "decoder_width": "wide"},
    "stride4 narrow": {"decoder": "stride4", "decoder_width": "narrow"},
    "stride4 narrow, SEB 128": {"decoder": "stride4", "decoder_width": "narrow", "semantic_embedding_width": 128},
    "full narrow, SEB 128": {"decoder": "full", "decoder_width": "narrow", "semantic_embedding_width": 128},
    "stride4 narrow, no SEB": {"decoder": "stride4", "decoder_width": "narrow", "semantic_embedding": False},
}


def info_of(options: dict[str, Any]) -> ModelMetadata:
    """Returns the description of one of ours, with weights yet to be drawn."""
    return ModelMetadata(
        name="exfuse_resnet101",
        options=options_of("exfuse_resnet101", options),
        class_names=tuple(f"class {index}" for index in range(CLASSES)),
        palette=tuple((index, index, index) for index in range(CLASSES)),
        ignore_index=255,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
