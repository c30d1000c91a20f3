"""Tracing a network into the program that all export formats are written from."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch.export import Dim, ExportedProgram

from exfuse.contained import contained
from exfuse.inference.engines.base import LABELS, LOGITS
from exfuse.models.deployable import DeployableModel
from exfuse.models.exfuse import ExFuse
from exfuse.models.options import PAD_MULTIPLE
from exfuse.models.storage.metadata import ModelMetadata

OUTPUTS = (LABELS, LOGITS)


def export_program(model: ExFuse, info: ModelMetadata) -> ExportedProgram:
    """Traces a model's `DeployableModel` for any number of images of any size."""
    return export_graph(DeployableModel(model, info))


def export_graph(graph: DeployableModel) -> ExportedProgram:
    """Traces a graph; see `export_program`."""
    graph.eval()
    # The example must have no special sizes: no batch of one, no multiple of the padding, no square.
    example = torch.zeros(2, 2 * PAD_MULTIPLE + 5, 3 * PAD_MULTIPLE + 11, 3, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    with quiet(), torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,), strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses a converter's output and warnings, but not its exceptions; see `contained`."""
    exporter = logging.getLogger("torch.onnx")
    with contained(), redirect_stdout(io.StringIO()):
        level = exporter.level
        exporter.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            exporter.setLevel(level)
