"""Opening a model folder or an export, with the fastest engine or a named one."""

import warnings
from pathlib import Path

from exfuse.errors import CheckpointError, ConfigError
from exfuse.export.conversion_cache import cached_conversion
from exfuse.export.formats import format_of
from exfuse.export.formats.base import MAIN_FILE
from exfuse.inference.engines import AUTO, ENGINES, engine_of, find_engine
from exfuse.inference.engines.base import Engine, EngineSpec, Precision
from exfuse.inference.tta import NO_TTA, TestTimeAugmentation
from exfuse.manifest import verify_folder
from exfuse.models.storage.folder import find_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.packages import is_installed, require

# Files of GPU drivers; if none exists, torch need not be imported to look for a GPU.
GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def open_engine(
    source: str | Path, name: str, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    """Loads a model into an engine; see `Predictor.from_pretrained`."""
    asked = None if name == AUTO else find_engine(name)
    exported = find_exported(Path(source))
    if exported is not None:
        spec = engine_of(exported.suffix)
        assert spec is not None  # noqa: S101 - `find_exported` looks for suffixes of engines only
        if asked not in (None, spec):
            raise ConfigError(f"{exported}: use the engine {spec.name}, not {name}")
        spec.check(precision, augmentation)
        verify_folder(exported.parent)
        return spec.load(exported, precision, augmentation)
    folder = find_model(source)
    if asked is None:
        return _open_fastest(folder, precision, augmentation)
    return _open_folder(folder, asked, precision, augmentation)


def find_exported(source: Path) -> Path | None:
    """Returns an export's main file, given that file or its folder; None for anything else.

    Raises:
        CheckpointError: If no engine opens the file.
    """
    suffixes = [spec.suffix for spec in ENGINES.values() if spec.suffix is not None]
    if source.is_file():
        if source.suffix not in suffixes:
            raise CheckpointError(f"{source}: neither a model folder nor a {' or '.join(suffixes)} file")
        return source
    if (source / f"{MAIN_FILE}.pt2").is_file():
        raise CheckpointError(
            f"{source / MAIN_FILE}.pt2: loading it can run code that it contains; if you trust it, use "
            "torch.export.load"
        )
    found = [source / f"{MAIN_FILE}{suffix}" for suffix in suffixes]
    return next((path for path in found if path.is_file()), None)


def reference_engine(source: str | Path, engine: str | None) -> str:
    """Returns the requested engine or, if none is, the one to evaluate with: torch, or "auto" for an export."""
    return engine or ("torch" if find_exported(Path(source)) is None else AUTO)


def _open_fastest(
    folder: Path, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    """Opens a model folder with torch on a GPU, or on a CPU with the first engine that works; torch is the last one."""
    failure = None
    on_gpu = _has_gpu()
    if augmentation == NO_TTA and not on_gpu:
        for spec in ENGINES.values():
            entry = None if spec.suffix is None else format_of(spec.suffix)
            if entry is None or not is_installed(entry.packages) or precision not in (None, *spec.precisions):
                continue
            try:
                return _open_folder(folder, spec, precision, augmentation)
            except CheckpointError as error:  # of the conversion or the cache; torch reports a damaged model itself
                failure = error
    from exfuse.inference.engines import torch_eager

    fastest = precision or (torch_eager.fast_precision("cuda") if on_gpu else None)
    opened = torch_eager.load(folder, fastest, augmentation, folded=True)
    if failure is not None:
        warnings.warn(f"falling back to the engine torch, which is slower: {failure}", RuntimeWarning, stacklevel=4)
    return opened


def _has_gpu() -> bool:
    if not any(Path(driver).exists() for driver in GPU_DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def _open_folder(
    folder: Path, spec: EngineSpec, precision: Precision | None, augmentation: TestTimeAugmentation
) -> tuple[Engine, ModelMetadata]:
    """Opens a model folder with an engine, after converting it if the engine computes exported files."""
    spec.check(precision, augmentation)
    if spec.suffix is None:
        return spec.load(folder, precision, augmentation)
    entry = format_of(spec.suffix)
    if entry is None:
        raise ConfigError(
            f"{folder}: the engine {spec.name} needs {spec.suffix} files, and no export format writes them"
        )
    require(entry.packages, entry.extra)
    return spec.load(cached_conversion(folder, entry), precision, augmentation)
