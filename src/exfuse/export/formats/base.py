"""The declaration of an export format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from exfuse.data.samples import Sample
from exfuse.inference.engines.base import Engine
from exfuse.models.storage.metadata import ModelMetadata

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MAIN_FILE = "model"  # the name of an export's main file, without its suffix


class ExportFormat(NamedTuple):
    """How a format is written and checked, known without importing its libraries.

    Attributes:
        name: As in `exfuse export --format`.
        suffix: Suffix of the main file; an engine with the same suffix computes it.
        write: Writes the traced `DeployableModel` and its metadata to a path, and further files next to it.
        packages: Import names of the packages needed to write the format and to compute it for the check.
        extra: The extra of exfuse that installs them.
        quantize: Replaces a written file by its int8 form; called with the path, the network, samples and the
            metadata. None if the format has no int8 form.
        load: Opens a written file for the check; None if the engine with the same suffix opens it.
        min_side: Shortest image side that an exported model accepts, in pixels.
    """

    name: str
    suffix: str
    write: "Callable[[ExportedProgram, ModelMetadata, Path], None]"
    packages: tuple[str, ...] = ()
    extra: str = ""
    quantize: Callable[[Path, Engine, Sequence[Sample], ModelMetadata], None] | None = None
    load: Callable[[Path], Engine] | None = None
    min_side: int = 1
