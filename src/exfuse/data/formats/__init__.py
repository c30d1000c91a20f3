"""The formats people keep labelled images in: one file each, and the table of those that are known."""

from pathlib import Path

from exfuse.data.formats.ade20k import Ade20k
from exfuse.data.formats.base import DatasetFormat
from exfuse.data.formats.cityscapes import Cityscapes
from exfuse.data.formats.folders import Folders
from exfuse.data.formats.lists import Lists
from exfuse.data.formats.voc import Voc
from exfuse.errors import DataError, brief, shown

FORMATS: dict[str, DatasetFormat] = {}


def register_format(dataset_format: DatasetFormat) -> None:
    """Makes a format known; of several that recognise a folder, the one registered last is taken.

    Args:
        dataset_format: With a name that is not taken yet.

    Raises:
        ValueError: If the name is taken.
    """
    if dataset_format.name in FORMATS:
        raise ValueError(f"there is a format {dataset_format.name!r} already")
    FORMATS[dataset_format.name] = dataset_format


for _format in (Lists(), Folders(), Ade20k(), Cityscapes(), Voc()):
    register_format(_format)


def detect_format(root: Path, split: str) -> DatasetFormat:
    """Returns the format of a folder, by what lies in it.

    Raises:
        DataError: If it has none of those that are known.
    """
    for known in reversed(FORMATS.values()):
        if known.detect(root, split):
            return known
    name = brief(split, limit=80)
    expected = "; or ".join(known.contents.replace("{split}", name) for known in FORMATS.values())
    raise DataError(
        f"{root}: no data set found for split {shown(split)}. Expected {expected}; or give a dataset file (.yaml)"
    )
