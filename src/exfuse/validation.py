"""Reading YAML that people write, and turning a validation report into one sentence that names the key."""

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from exfuse.errors import did_you_mean

MAX_DEPTH = 16  # levels of nesting; ours have three
MAX_YAML = 2**18  # bytes of a document; a recipe has 1,500
MAX_LINE = 2**14  # characters
MAX_VALUES = 4000  # of a document, keys included: all classes with colours and a label map are 2,500
MAX_NUMBER = 32  # characters of a number, with which it can be shown and compared, whatever base it is written in
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load_yaml(text: str) -> Any:
    """Reads a YAML document of plain values.

    Raises:
        ValueError: If it, a line or a number is too long, if it has too many values, nests too deep, names a type, has
            a key twice or one that is no scalar, or repeats itself by aliases, with which a short text can be a huge
            document.
        yaml.YAMLError: If it is no YAML.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"{len(text):,} characters, and {MAX_YAML:,} are allowed")
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has {len(line):,} characters, and {MAX_LINE:,} are allowed")
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"the tag {tag!r} is not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        values += isinstance(event, yaml.ScalarEvent)
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
    _check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
    return yaml.safe_load(text)


def _check_nodes(node: yaml.Node | None) -> None:
    """Looks for overlong numbers, and for keys that come twice, of which YAML's readers silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key that is a list or a mapping")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} comes a second time")
            seen.add(key.value)
            _check_nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item)
    elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > MAX_NUMBER:
        raise ValueError(
            f"line {node.start_mark.line + 1}: a number of {len(node.value):,} characters, and {MAX_NUMBER} are allowed"
        )


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Returns what is wrong with the first bad key: its dotted path, the value, and what would have been accepted.

    Args:
        error: What pydantic raised.
        model: The model that was validated, for the names that a misspelt key may have meant.
    """
    first = error.errors(include_url=False)[0]
    path = _cut(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        siblings = _fields_at(model, [str(part) for part in first["loc"][:-1]])
        return f"unknown key {path!r}; {did_you_mean(_cut(str(first['loc'][-1])), siblings)}"
    if first["type"] == "missing":
        return f"the key {path!r} is missing"
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    if not path:
        return f"expected keys and values, got {type(first['input']).__name__}"
    if first["type"] == "tuple_type":
        return f"{path}: expected a list, such as [1, 2], got {_cut(repr(first['input']))}"
    return f"{path}: {first['msg']}, got {_cut(repr(first['input']))}"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _fields_at(model: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return {}
        model = inner
    return model.model_fields
