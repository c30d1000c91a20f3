"""int8 with NNCF, calibrated on the user's images; operations that lower the score stay in higher precision."""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from exfuse.contained import contained
from exfuse.data.samples import Sample, UInt8Array
from exfuse.export.openvino_passes.precision import interpolated_scores, keep_in_float32
from exfuse.export.trace import quiet
from exfuse.export.verify import TOLERANCES
from exfuse.inference.engines.base import LABELS, Engine
from exfuse.inference.engines.openvino import INT8_PATH, read_openvino, save_openvino
from exfuse.metrics import ConfusionMatrix
from exfuse.models.storage.metadata import ModelMetadata

if TYPE_CHECKING:
    import openvino as ov

CALIBRATION_IMAGES = 300
RANKING_IMAGES = 10  # the images that int8 changes most; each group of operations is tried on them
MOST_GROUPS = 20  # groups that may return to higher precision; each is measured on all images

# An RGB image `(1, H, W, 3)`, and the labels `(H, W)` to compare with.
Pair = tuple[UInt8Array, UInt8Array]


def quantize(path: Path, network: Engine, samples: Sequence[Sample], info: ModelMetadata) -> None:
    """Replaces an OpenVINO model by its int8 form.

    The mean IoU is measured on the images before and after; for images without labels, the fraction of labels equal to
    the network's. If it drops by more than `TOLERANCES` allow, groups of operations return to higher precision, the
    most harmful first, until the drop is small enough or `MOST_GROUPS` have returned.

    The conversion runs in a separate process, because importing NNCF changes torch's functions.

    Args:
        path: The `.xml` file.
        network: The original model; its labels are the ground truth if no image is labelled.
        samples: Images for calibration and measurement.
        info: The model's metadata.
    """
    labelled = any((sample.mask != info.ignore_index).any() for sample in samples)
    pairs = [
        (sample.image[None], sample.mask if labelled else network.labels(sample.image[None])[0]) for sample in samples
    ]
    with quiet(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(_quantize, path, pairs, labelled).result()


def _quantize(path: Path, pairs: Sequence[Pair], labelled: bool) -> None:
    with contained():
        import nncf

    model, info = read_openvino(path)

    def measure(compiled: "ov.CompiledModel", items: Iterable[Pair]) -> tuple[float, list[float]]:
        matrix, per_image = ConfusionMatrix(len(info.class_names), info.ignore_index), []
        for image, truth in items:
            labels = compiled(image)[LABELS][0]
            matrix.update(labels, truth)
            per_image.append(float((labels == truth).mean()))
        return matrix.mean_iou() if labelled else matrix.pixel_accuracy(), per_image

    logging.getLogger("nncf").setLevel(logging.WARNING)
    with quiet():
        int8 = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=nncf.Dataset(pairs, lambda pair: pair[0]),
            validation_dataset=nncf.Dataset(pairs),
            validation_fn=measure,
            max_drop=1 - TOLERANCES["int8"].mean_iou,
            drop_type=nncf.DropType.RELATIVE,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted(interpolated_scores(model))),
            subset_size=min(CALIBRATION_IMAGES, len(pairs)),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                max_num_iterations=MOST_GROUPS, ranking_subset_size=RANKING_IMAGES
            ),
        )
    int8.set_rt_info("true", INT8_PATH)
    interpolated = interpolated_scores(int8)  # the marks of the original file are lost by now
    staged = path.with_stem(f"{path.stem}_int8")
    save_openvino(int8, info, staged)
    keep_in_float32(staged, interpolated)
    for suffix in (".xml", ".bin"):
        staged.with_suffix(suffix).replace(path.with_suffix(suffix))
