"""Reading YAML that people write, and turning a validation report into one sentence that names the key."""

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from exfuse.errors import did_you_mean

MAX_DEPTH = 16  # levels of nesting; ours have three


def load_yaml(text: str) -> Any:
    """Reads a YAML document of plain values.

    Raises:
        ValueError: If it nests too deep, names a type, has a key twice or one that is no scalar, or repeats itself by
            aliases, with which a short text can be a huge document.
        yaml.YAMLError: If it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"the tag {tag!r} is not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    return yaml.safe_load(text)


def _check_keys(node: yaml.Node | None) -> None:
    """Looks for keys that come twice, of which YAML's readers silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key that is a list or a mapping")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} comes a second time")
            seen.add(key.value)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item)


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Returns what is wrong with the first bad key: its dotted path, the value, and what would have been accepted.

    Args:
        error: What pydantic raised.
        model: The model that was validated, for the names that a misspelt key may have meant.
    """
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        siblings = _fields_at(model, [str(part) for part in first["loc"][:-1]])
        return f"unknown key {path!r}; {did_you_mean(str(first['loc'][-1]), siblings)}"
    if first["type"] == "missing":
        return f"the key {path!r} is missing"
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    if not path:
        return f"expected keys and values, got {type(first['input']).__name__}"
    if first["type"] == "tuple_type":
        return f"{path}: expected a list, such as [1, 2], got {first['input']!r}"
    shown = repr(first["input"])
    return f"{path}: {first['msg']}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _fields_at(model: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return {}
        model = inner
    return model.model_fields
