"""The rules of the house: who may import whom, how large things may grow, what is never called."""

import ast
import importlib
from pathlib import Path

import pytest

import exfuse

SOURCE = Path(exfuse.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Room -> rooms it may import from. A room may always import from itself.
MAY_IMPORT = {
    "errors": set(),
    "validation": {"errors"},
    "console": set(),
    "atomic_io": set(),
    "outputs": {"atomic_io", "errors", "manifest"},
    "manifest": {"atomic_io", "errors"},
    "cache": {"atomic_io", "errors", "manifest"},
    "contained": {"cache"},
    "distributed": {"errors"},
    "layers": set(),
    "models": {"layers", "data", "contained", "atomic_io", "errors", "manifest", "outputs"},
    "data": {"cache", "atomic_io", "errors", "manifest", "outputs", "validation"},
    "metrics": set(),
    "losses": {"data", "errors"},
    "packages": {"errors"},
    "plugins": {"errors"},
    "drawing": {"data"},
    "inference": {"models", "data", "contained", "errors", "packages"},
    "export": {
        "inference", "models", "data", "metrics", "cache", "contained", "atomic_io", "errors", "manifest", "outputs",
        "packages",
    },
    "predictor": {"drawing", "export", "inference", "models", "data", "errors"},
    "evaluation": {
        "drawing", "predictor", "export", "inference", "models", "data", "metrics", "distributed", "errors", "outputs",
    },
    "training": {
        "evaluation", "predictor", "inference", "models", "data", "metrics", "losses", "distributed",
        "atomic_io", "errors", "manifest", "outputs", "validation",
    },
    "ablation": {
        "training", "evaluation", "predictor", "models", "data", "distributed", "atomic_io", "errors", "outputs",
    },
    "cli": {
        "ablation", "drawing", "export", "training", "evaluation", "predictor", "inference", "models", "data",
        "contained", "distributed", "atomic_io", "errors", "manifest", "console", "outputs",
        "plugins",
    },
    "__main__": {"cli"},
    "__init__": {
        "predictor", "data", "evaluation", "export", "inference", "models", "metrics", "losses", "training", "errors",
    },
}  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    inside = {name.split(".")[1] for name in imports_of(path) if name.startswith("exfuse.")}
    assert inside <= MAY_IMPORT[room_of(path)] | {room_of(path)}


def test_layers_import_torch_only() -> None:
    outside = {name.split(".")[0] for path in FILES if room_of(path) == "layers" for name in imports_of(path)} - {
        "exfuse",
        "collections",
        "torch",
    }
    assert outside == set()


def imported_at_once(path: Path) -> set[str]:
    """Returns the modules that a file imports when it is imported: not in functions, not for type checkers."""
    names, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    # A package's own file is run as well.
    return names | {name.rpartition(".")[0] for name in names}


def module_of(path: Path) -> str:
    return ".".join(("exfuse", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def needs_torch() -> set[str]:
    """Returns the modules that bring torch when they are imported."""
    imports = {module_of(path): imported_at_once(path) for path in FILES}
    found = {name for name, wanted in imports.items() if any(one.partition(".")[0] == "torch" for one in wanted)}
    while more := {name for name, wanted in imports.items() if wanted & found} - found:
        found |= more
    return found


def test_inference_is_free_of_torch_but_for_the_engines_that_are_torch() -> None:
    """An exported model is opened and computed without torch, which need not be installed."""
    found = needs_torch()
    rooms = [module_of(path) for path in FILES if room_of(path) in ("inference", "predictor")]
    assert {name for name in rooms if name in found} == {
        "exfuse.inference.engines.torch_compile",
        "exfuse.inference.engines.torch_eager",
    }
    opened_with = {
        "exfuse",
        "exfuse.export.open",
        "exfuse.export.conversion_cache",
        "exfuse.cli.predict",
        "exfuse.cli.app",
    }
    assert not opened_with & found
    assert "exfuse.export.trace" in found, "the test sees what it looks for"


def test_modules_import_in_no_circle() -> None:
    imports = {module_of(path): imported_at_once(path) - {module_of(path)} for path in FILES}
    packages = {name for name in imports if any(other.startswith(f"{name}.") for other in imports)}
    left = {
        name: {one for one in wanted if one in imports and not (one in packages and name.startswith(f"{one}."))}
        for name, wanted in imports.items()
    }
    while done := {name for name, wanted in left.items() if not wanted & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in done}
    assert left == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_that_report_their_use_are_imported_contained(path: Path) -> None:
    def imported(node: ast.AST) -> set[str]:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        return {name.partition(".")[0] for name in names} & {"openvino", "onnxruntime", "nncf"}

    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        is_contained = isinstance(node, ast.With) and any(
            ast.unparse(i.context_expr) == "contained()" for i in node.items
        )
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_contained and not is_for_types:
            assert imported(node) == set()
            waiting += ast.iter_child_nodes(node)


def test_torchvision_and_timm_stay_out_of_the_core() -> None:
    users = {
        path.name: name.split(".")[0]
        for path in FILES
        for name in imports_of(path)
        if name.split(".")[0] in ("torchvision", "timm")
    }
    assert users == {"timm.py": "timm"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path.name}: {node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    text = path.read_text()
    for forbidden in ("pickle.load", "yaml.load(", "shell=True", "weights_only=False", "os.system"):
        assert forbidden not in text
    loads = text.count("torch.load(")
    assert loads == (1 if path.name == "unpickle.py" else 0)
    assert text.count("weights_only=True") >= loads
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert not [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("eval", "exec")]


def test_the_public_surface_is_small_and_real() -> None:
    assert len((SOURCE / "__init__.py").read_text().splitlines()) < 60
    assert all(hasattr(exfuse, name) for name in exfuse.__all__)
    assert exfuse.__all__ == sorted(exfuse.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    layers = importlib.import_module("exfuse.layers")
    assert all(hasattr(layers, name) for name in layers.__all__)
