"""Networks with random weights, written for each engine."""

from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from exfuse.atomic_io import digest_of
from exfuse.export.formats import format_of
from exfuse.export.formats.torch_export import ProgramEngine
from exfuse.export.trace import export_program
from exfuse.inference.engines.base import Engine
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.manifest import write_manifest
from exfuse.models.options import options_of
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.predictor import Predictor


def info_of(name: str = "exfuse_tiny", **options: object) -> ModelMetadata:
    return ModelMetadata(
        name=name,
        options=options_of(name, options),
        class_names=("a", "b", "c", "d", "e"),
        palette=((0, 0, 0), (50, 0, 0), (100, 0, 0), (150, 0, 0), (200, 0, 0)),
        ignore_index=255,
        image_mean=(0.4, 0.5, 0.6),
        image_std=(0.2, 0.25, 0.3),
    )


NETWORKS = {
    "full": info_of(decoder_width=8),
    "stride4": info_of("gcn_tiny", decoder="stride4", decoder_width="narrow", dap_window=3),
    "baseline": info_of("gcn_tiny", decoder="stride4"),
}


class Written:
    """A network with random weights, and the folder of its model."""

    def __init__(self, info: ModelMetadata, folder: Path) -> None:
        torch.manual_seed(0)
        model = build_model(info).eval()
        # Running statistics of a fresh network are trivial; these are not.
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        self.folder, self.model, self.info = folder, model, info
        self.network = TorchEngine(model, info)
        self.program: ExportedProgram | None = None
        self.opened: dict[str, Engine] = {}
        save_pretrained(folder, model, info.to_json(), "")

    def write(self, suffix: str) -> Path:
        """Writes the network for an engine, traced once for all of them."""
        path = self.folder.with_name(f"written_{suffix[1:]}") / f"model{suffix}"
        if not path.is_file():
            path.parent.mkdir()
            self.program = self.program or export_program(self.model, self.info)
            format_of(suffix).write(self.program, self.info, path)
            write_manifest(path.parent, {file.name: digest_of(file) for file in path.parent.iterdir()})
        return path

    def open(self, suffix: str) -> Engine:
        """Returns the engine of a written network, opened once."""
        if suffix not in self.opened:
            path = self.write(suffix)
            is_program = suffix == ".pt2"
            engine = ProgramEngine(path) if is_program else Predictor.from_pretrained(path, precision="fp32").engine
            self.opened[suffix] = engine
        return self.opened[suffix]


def pictures(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
