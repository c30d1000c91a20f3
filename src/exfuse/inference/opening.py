"""Which engine computes a model. Knows no torch unless the engine needs it."""

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from exfuse.errors import CheckpointError, ConfigError, did_you_mean
from exfuse.inference.converted import MAIN_FILE, converted
from exfuse.inference.engines.base import Engine, Precision
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.manifest import verify_folder
from exfuse.models.folder import find_model
from exfuse.models.metadata import ModelMetadata

EngineName = Literal["auto", "torch", "compile", "openvino", "onnxruntime"]

# The suffix of an export's main file -> the engine that computes it, the fastest first.
EXPORTED: dict[str, EngineName] = {".xml": "openvino", ".onnx": "onnxruntime"}
# What it takes to compute with an engine, to write such a file, and how to get a package.
PACKAGES: dict[EngineName, tuple[str, ...]] = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}
WRITTEN_WITH = {".xml": ("openvino",), ".onnx": ("onnxruntime", "onnx", "onnxscript")}
EXTRAS = {"openvino": "openvino", "onnxruntime": "onnx", "onnx": "onnx", "onnxscript": "onnx", "nncf": "int8"}
# Where a driver of a graphics card shows itself: looking spares a process without one the import of torch.
CARDS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # as torch names them, of Intel, AMD and ARM


def open_engine(
    source: str | Path, name: EngineName, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    """Loads a model into an engine; see `Predictor.from_pretrained`."""
    if name not in get_args(EngineName):
        raise ConfigError(f"there is no engine {name!r}; {did_you_mean(name, get_args(EngineName))}")
    exported = find_exported(Path(source))
    if exported is not None:
        own = EXPORTED[exported.suffix]
        if name not in ("auto", own):
            raise ConfigError(f"{exported} is computed by the engine {own}, not by {name}")
        if augmentation != NO_TTA:
            raise ConfigError(f"{exported}: scales and flips are averaged with a model folder only")
        verify_folder(exported.parent)
        return open_exported(exported, precision)
    folder = find_model(source)
    if name == "auto":
        return _open_fastest(folder, precision, augmentation)
    if augmentation != NO_TTA and name != "torch":
        raise ConfigError(f"scales and flips are averaged by the engine torch, not by {name}")
    return _open_folder(folder, name, precision, augmentation)


def find_exported(source: Path) -> Path | None:
    """Returns the main file of an exported model, given that file or its folder; None if it is something else."""
    if source.is_file():
        if source.suffix not in EXPORTED:
            raise CheckpointError(f"{source}: neither a model folder nor a file that ends in {' or '.join(EXPORTED)}")
        return source
    if (source / f"{MAIN_FILE}.pt2").is_file():
        raise CheckpointError(
            f"{source / MAIN_FILE}.pt2: torch reads such a file by means that can run what is in it; if you trust "
            "it, use torch.export.load"
        )
    found = [source / f"{MAIN_FILE}{suffix}" for suffix in EXPORTED]
    return next((path for path in found if path.is_file()), None)


def _open_fastest(
    folder: Path, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    """Takes a graphics card first, then what is installed, and torch, with a warning, if all else fails."""
    failure = None
    on_card = _has_cuda()
    if augmentation == NO_TTA and not on_card:
        for suffix, engine in EXPORTED.items():
            if _missing(WRITTEN_WITH[suffix]) or (engine == "onnxruntime" and precision == "bf16"):
                continue
            try:
                return _open_folder(folder, engine, precision, augmentation)
            except CheckpointError as error:  # it does not convert, or cannot be kept, or torch says more of it
                failure = error
    fastest = precision or (_fast_precision(on_card) if on_card else None)
    opened = _open_torch(folder, fastest, augmentation, folded=True)
    if failure is not None:
        warnings.warn(f"the engine torch is used, which is slower: {failure}", RuntimeWarning, stacklevel=4)
    return opened


def _has_cuda() -> bool:
    if not any(Path(card).exists() for card in CARDS):
        return False
    import torch

    return torch.cuda.is_available()


def _fast_precision(on_card: bool) -> Precision:
    """Returns "bf16" where torch finds units for it."""
    import torch

    if on_card:
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions do not say
        has_units = any(capabilities.get(unit) for unit in BF16_UNITS)
    return "bf16" if has_units else "fp32"


def _missing(packages: Iterable[str]) -> list[str]:
    specs = {package: find_spec(package) for package in packages}
    # A folder that happens to have a package's name is found, too, but comes from nowhere.
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]


def require(packages: Iterable[str]) -> None:
    """Checks that packages are installed.

    Raises:
        ConfigError: If one is not; says what to install.
    """
    if missing := _missing(packages):
        raise ConfigError(f"{missing[0]} is not installed; pip install 'exfuse[{EXTRAS[missing[0]]}]'")


def open_exported(path: Path, precision: Precision | None) -> tuple[Engine, ModelMetadata]:
    """Loads a file that was written for an engine, one that is known to be as it was written."""
    require(PACKAGES[EXPORTED[path.suffix]])
    if path.suffix == ".xml":
        from exfuse.inference.engines.openvino_engine import OpenVINOEngine, read_openvino

        model, info = read_openvino(path)
        return OpenVINOEngine(model, info, precision, path), info
    from exfuse.inference.engines.onnxruntime_engine import OnnxRuntimeEngine

    _check_onnx_precision(precision)
    engine = OnnxRuntimeEngine(path)
    return engine, engine.info


def _open_torch(
    folder: Path, precision: Precision | None, augmentation: TestTimeAugmentation, folded: bool
) -> tuple[Engine, ModelMetadata]:
    """Opens a model folder with torch: the network as it was trained, or folded, which the engine's name then says."""
    from exfuse.inference.engines.torch_engine import TorchEngine
    from exfuse.models.folding import fold
    from exfuse.models.pretrained import load_pretrained

    model, info = load_pretrained(folder)
    engine = TorchEngine(fold(model) if folded else model, info, augmentation, precision or "fp32")
    engine.name = "torch, folded" if folded else "torch"
    return engine, info


def _open_folder(
    folder: Path, name: EngineName, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    if name == "torch":
        return _open_torch(folder, precision, augmentation, folded=False)
    if name == "compile":
        from exfuse.inference.engines.compiled import CompiledEngine
        from exfuse.inference.graph import DeployableModel
        from exfuse.models.pretrained import load_pretrained

        compilers = [os.environ.get("CXX"), "g++", "clang++"]
        if not any(compiler and shutil.which(compiler) for compiler in compilers):
            raise ConfigError("the engine compile needs a C++ compiler: g++, clang++, or what CXX names")
        model, info = load_pretrained(folder)
        return CompiledEngine(DeployableModel(model, info), precision or _fast_precision(_has_cuda())), info
    if name == "onnxruntime":
        _check_onnx_precision(precision)
    suffix = next(suffix for suffix, engine in EXPORTED.items() if engine == name)
    require(WRITTEN_WITH[suffix])
    return open_exported(converted(folder, suffix, WRITTEN_WITH[suffix]), precision)


def _check_onnx_precision(precision: Precision | None) -> None:
    if precision == "bf16":
        raise ConfigError("the engine onnxruntime computes in fp32 only")
