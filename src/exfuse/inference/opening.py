"""Which engine computes a model. Knows no torch unless the engine needs it."""

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

from exfuse.durable import digest_of
from exfuse.errors import CheckpointError, ConfigError, did_you_mean
from exfuse.inference.augmentation import PLAIN, TestTimeAugmentation
from exfuse.inference.engines.base import Engine, Precision
from exfuse.models.folder import CONFIG_FILE, WEIGHTS_FILE, find_model
from exfuse.models.info import ModelInfo

if TYPE_CHECKING:
    pass

EngineName = Literal["auto", "torch", "compile", "openvino", "onnxruntime"]

# The suffix of an export's main file -> the engine that computes it, the fastest first.
EXPORTED: dict[str, EngineName] = {".xml": "openvino", ".onnx": "onnxruntime"}
EXPORTED_STEM = "model"
# What it takes to compute with an engine, to write such a file, and how to get a package.
PACKAGES: dict[EngineName, tuple[str, ...]] = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}
WRITTEN_WITH = {".xml": ("openvino",), ".onnx": ("onnxruntime", "onnx", "onnxscript")}
EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx", "onnx": "onnx", "onnxscript": "onnx", "nncf": "int8"}


def open_engine(
    source: str | Path, name: EngineName, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelInfo]:
    """Loads a model into an engine; see `Predictor.from_pretrained`."""
    if name not in get_args(EngineName):
        raise ConfigError(f"there is no engine {name!r}; {did_you_mean(name, get_args(EngineName))}")
    exported = find_exported(Path(source))
    if exported is not None:
        own = EXPORTED[exported.suffix]
        if name not in ("auto", own):
            raise ConfigError(f"{exported} is computed by the engine {own}, not by {name}")
        if augmentation != PLAIN:
            raise ConfigError(f"{exported}: scales and flips are averaged with a model folder only")
        return _open_exported(exported, own, precision)
    chosen = _fastest(augmentation) if name == "auto" else name
    if augmentation != PLAIN and chosen != "torch":
        raise ConfigError(f"scales and flips are averaged by the engine torch, not by {chosen}")
    return _open_folder(find_model(source), chosen, precision, augmentation)


def find_exported(source: Path) -> Path | None:
    """Returns the main file of an exported model, given that file or its folder; None if it is something else."""
    if source.is_file():
        if source.suffix not in EXPORTED:
            raise CheckpointError(f"{source}: neither a model folder nor a file that ends in {' or '.join(EXPORTED)}")
        return source
    if (source / f"{EXPORTED_STEM}.pt2").is_file():
        raise CheckpointError(
            f"{source / EXPORTED_STEM}.pt2: torch reads such a file by means that can run what is in it; if you trust "
            "it, use torch.export.load"
        )
    found = [source / f"{EXPORTED_STEM}{suffix}" for suffix in EXPORTED]
    return next((path for path in found if path.is_file()), None)


def _fastest(augmentation: TestTimeAugmentation) -> EngineName:
    """Chooses for a model folder: a graphics card first, then what is installed, in the order of the benchmark."""
    if augmentation != PLAIN or _has_cuda():
        return "torch"
    installed = [engine for suffix, engine in EXPORTED.items() if not _missing(WRITTEN_WITH[suffix])]
    return installed[0] if installed else "torch"


def _has_cuda() -> bool:
    if not Path("/proc/driver/nvidia").exists():  # spares a process without one the import of torch
        return False
    import torch

    return torch.cuda.is_available()


def _missing(packages: Iterable[str]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def require(packages: Iterable[str]) -> None:
    """Checks that packages are installed.

    Raises:
        ConfigError: If one is not; says what to install.
    """
    if missing := _missing(packages):
        raise ConfigError(f"{missing[0]} is not installed; pip install 'exfuse[{EXTRAS[missing[0]]}]'")


def _open_exported(path: Path, name: EngineName, precision: Precision | None) -> tuple[Engine, ModelInfo]:
    require(PACKAGES[name])
    if name == "openvino":
        from exfuse.inference.engines.openvino_engine import OpenVINOEngine, read_openvino

        model, info = read_openvino(path)
        return OpenVINOEngine(model, precision, _writable(cache_folder() / "compiled")), info
    from exfuse.inference.engines.onnxruntime_engine import OnnxRuntimeEngine

    if precision == "bf16":
        raise ConfigError("the engine onnxruntime computes in fp32 only")
    engine = OnnxRuntimeEngine(path)
    return engine, engine.info


def _open_folder(
    folder: Path, name: EngineName, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelInfo]:
    if name == "torch":
        from exfuse.inference.engines.torch_engine import TorchEngine
        from exfuse.models.pretrained import load_pretrained

        model, info = load_pretrained(folder)
        return TorchEngine(model, info, augmentation, precision or "fp32"), info
    if name == "compile":
        from exfuse.inference.engines.compiled import CompiledEngine
        from exfuse.inference.graph import LabelGraph
        from exfuse.models.pretrained import load_pretrained

        model, info = load_pretrained(folder)
        return CompiledEngine(LabelGraph(model, info), precision or "bf16"), info
    return _open_exported(_converted(folder, name), name, precision)


def _converted(folder: Path, name: EngineName) -> Path:
    """Returns a folder's model converted for an engine, which is done once and kept in the cache."""
    suffix = next(suffix for suffix, engine in EXPORTED.items() if engine == name)
    require(WRITTEN_WITH[suffix])
    parts = [version(package) for package in ("exfuse", *WRITTEN_WITH[suffix])]
    try:
        parts += [digest_of(folder / file).sha256 for file in (WEIGHTS_FILE, CONFIG_FILE)]
    except OSError as error:
        raise CheckpointError(f"{folder}: the model cannot be read ({error.strerror})") from error
    target = cache_folder() / name / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]
    path = target / f"{EXPORTED_STEM}{suffix}"
    if not path.is_file():
        from exfuse.inference.conversion import WRITE, export_program
        from exfuse.models.pretrained import load_pretrained

        model, info = load_pretrained(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=target.parent, prefix=".") as temporary:
                staged = Path(temporary) / target.name
                staged.mkdir()
                WRITE[suffix](export_program(model, info), info, staged / path.name)
                if not target.exists():  # or another process was faster
                    staged.rename(target)
        except OSError as error:
            why = f"{error.strerror or error}; EXFUSE_CACHE can name another folder, and the engine torch needs none"
            raise CheckpointError(f"{target}: the converted model could not be written ({why})") from error
    return path


def _writable(folder: Path) -> Path | None:
    """Returns a folder, made if need be; None where nothing can be written, since it only saves time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def cache_folder() -> Path:
    """Returns where converted and compiled models are kept: `EXFUSE_CACHE`, or `exfuse` in the user's cache."""
    own = os.environ.get("EXFUSE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "exfuse"
