"""The engines that compute a network: one file each, and one entry in the table below."""

from importlib import import_module

from exfuse.errors import ConfigError, did_you_mean
from exfuse.inference.engines.base import EngineSpec, LoadEngine

AUTO = "auto"  # chooses the fastest installed engine


def _load_with(module: str) -> LoadEngine:
    """Returns the `load` function of an engine's module; the first call imports the module and its library."""
    return lambda path, precision, tta: import_module(f"{__name__}.{module}").load(path, precision, tta)


# Engines for exported files come first, the fastest first: "auto" tries them in this order.
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
    """Registers an engine, which `Predictor.from_pretrained` and the commands then accept by name.

    Args:
        spec: The engine. If it has a `suffix`, it opens exported files with that suffix; for model folders, it also
            needs a registered export format with the same suffix.

    Raises:
        ConfigError: If an engine with that name or suffix is already registered.
    """
    if spec.name in (AUTO, *ENGINES):
        raise ConfigError(f"engine {spec.name!r} is already registered; choose another name")
    if spec.suffix is not None and (own := engine_of(spec.suffix)) is not None:
        raise ConfigError(f"suffix {spec.suffix} is already registered, for the engine {own.name}")
    ENGINES[spec.name] = spec


def find_engine(name: str) -> EngineSpec:
    """Returns a registered engine.

    Raises:
        ConfigError: If the name is unknown; the message suggests known ones.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}; {did_you_mean(name, (AUTO, *ENGINES))}")
    return ENGINES[name]


def engine_of(suffix: str) -> EngineSpec | None:
    """Returns the engine that computes exported files with a suffix; None if there is none."""
    return next((spec for spec in ENGINES.values() if spec.suffix == suffix), None)
