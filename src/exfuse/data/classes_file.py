"""`classes.json`: the names, colours and ignored label of a data set."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exfuse.data.classes import Classes, Color
from exfuse.data.files import read_text
from exfuse.errors import DataError, brief, without_path
from exfuse.validation import describe

Byte = Annotated[int, Field(ge=0, le=255)]
CLASSES_FILE = "classes.json"


class ClassRow(BaseModel):
    """A class in `classes.json`."""

    model_config = ConfigDict(strict=True)

    id: int
    name: str
    color: Annotated[list[Byte], Field(min_length=3, max_length=3)]


class ClassesFile(BaseModel):
    """The content of `classes.json`; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    classes: list[ClassRow]
    ignore_index: Byte = 255


def read_classes(path: Path) -> Classes:
    """Reads `classes.json`: a list `classes` of objects with `id`, `name` and `color`, and `ignore_index`.

    Raises:
        DataError: If it cannot be read, or one of these is missing or invalid.
    """
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable list of classes ({without_path(error)})") from error
    try:
        described = ClassesFile.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {brief(describe(error, ClassesFile))}") from error
    rows = sorted(described.classes, key=lambda row: row.id)
    if [row.id for row in rows] != list(range(len(rows))):
        raise DataError(f"{path}: the ids must be 0, 1, 2 and so on")
    palette = tuple((red, green, blue) for red, green, blue in (row.color for row in rows))
    return checked_classes(path, tuple(row.name for row in rows), palette, described.ignore_index)


def checked_classes(path: Path, names: tuple[str, ...], palette: tuple[Color, ...], ignore_index: int = 255) -> Classes:
    """Returns classes; errors begin with the path of the file that describes them.

    Raises:
        DataError: If a name, a colour or the ignored label is invalid.
    """
    try:
        return Classes(names, palette, ignore_index)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
