"""The formats of data sets: one file each, and the table of the registered ones."""

from pathlib import Path

from exfuse.data.formats.ade20k import Ade20k
from exfuse.data.formats.base import DatasetFormat
from exfuse.data.formats.cityscapes import Cityscapes
from exfuse.data.formats.folders import Folders
from exfuse.data.formats.lists import Lists
from exfuse.data.formats.voc import Voc
from exfuse.errors import ConfigError, DataError, brief, shown

FORMATS: dict[str, DatasetFormat] = {}


def register_format(dataset_format: DatasetFormat) -> None:
    """Registers a format; if several recognise a folder, the one registered last is used.

    Args:
        dataset_format: The format; its name must not be taken yet.

    Raises:
        ConfigError: If the name is taken.
    """
    if dataset_format.name in FORMATS:
        raise ConfigError(f"format {dataset_format.name!r} is already registered; choose another name")
    FORMATS[dataset_format.name] = dataset_format


for _format in (Lists(), Folders(), Ade20k(), Cityscapes(), Voc()):
    register_format(_format)


def detect_format(root: Path, split: str) -> DatasetFormat:
    """Returns the format of a folder, recognised by its content.

    Raises:
        DataError: If it has none of the registered formats.
    """
    for known in reversed(FORMATS.values()):
        if known.detect(root, split):
            return known
    name = brief(split, limit=80)
    expected = "; or ".join(known.contents.replace("{split}", name) for known in FORMATS.values())
    raise DataError(
        f"{root}: no data set found for split {shown(split)}. Expected {expected}; or give a dataset file "
        "(.yaml); or register a format of your own (docs/python.md)"
    )
