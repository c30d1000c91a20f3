"""The engines that compute a network: one file each, and one entry in the table below."""

from importlib import import_module

from exfuse.errors import ConfigError, did_you_mean
from exfuse.inference.engines.base import EngineSpec, LoadEngine

AUTO = "auto"  # the name that stands for the fastest engine that is installed


def _load_with(module: str) -> LoadEngine:
    """Returns the `load` of an engine's module, which is imported, with its library, when it is first called."""
    return lambda path, precision, tta: import_module(f"{__name__}.{module}").load(path, precision, tta)


# Those that compute exported files come first, the fastest one first: the order in which "auto" tries them.
ENGINES = {
    spec.name: spec
    for spec in (
        EngineSpec("openvino", _load_with("openvino"), suffix=".xml", packages=("openvino",), extra="openvino"),
        EngineSpec(
            "onnxruntime",
            _load_with("onnxruntime"),
            suffix=".onnx",
            packages=("onnxruntime",),
            extra="onnx",
            precisions=("fp32",),
        ),
        EngineSpec("torch", _load_with("torch_eager"), has_tta=True),
        EngineSpec("compile", _load_with("torch_compile")),
    )
}


def register_engine(spec: EngineSpec) -> None:
    """Adds an engine, which `Predictor.from_pretrained` and the commands then know by its name.

    Args:
        spec: The engine. With a `suffix`, it also opens exported files of that suffix; to compute model folders, an
            export format of the same suffix must be registered as well.

    Raises:
        ConfigError: If an engine of that name or suffix is registered already.
    """
    if spec.name in (AUTO, *ENGINES):
        raise ConfigError(f"an engine named {spec.name!r} is registered already")
    if spec.suffix is not None and (own := engine_of(spec.suffix)) is not None:
        raise ConfigError(f"the engine {own.name} is registered for {spec.suffix} files already")
    ENGINES[spec.name] = spec


def find_engine(name: str) -> EngineSpec:
    """Returns a registered engine.

    Raises:
        ConfigError: If there is none of that name, with the nearest known ones.
    """
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r}; {did_you_mean(name, (AUTO, *ENGINES))}")
    return ENGINES[name]


def engine_of(suffix: str) -> EngineSpec | None:
    """Returns the engine that computes exported files of a suffix; None without one."""
    return next((spec for spec in ENGINES.values() if spec.suffix == suffix), None)
