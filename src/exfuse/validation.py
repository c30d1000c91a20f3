"""Reading YAML written by people, and reporting a failed validation in one sentence that names the key."""

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from exfuse.errors import did_you_mean

MAX_DEPTH = 16  # levels of nesting; ours have three
MAX_YAML = 2**18  # characters in a document; a recipe has about 1,500
MAX_LINE = 2**14  # characters in a line
MAX_VALUES = 4000  # in a document, keys included
MAX_NUMBER = 32  # characters in a number, so that it can be printed and compared, whatever its base
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def load_yaml(text: str) -> Any:
    """Parses a YAML document of plain values.

    Raises:
        ValueError: If the document, a line or a number is too long, there are too many values, the nesting is too
            deep, a key is duplicated or not a scalar, or there is a tag or an alias; aliases let a short text expand
            into a huge document.
        yaml.YAMLError: If it is not YAML.
    """
    if len(text) > MAX_YAML:
        raise ValueError(f"{len(text):,} characters; at most {MAX_YAML:,} are allowed")
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has {len(line):,} characters; at most {MAX_LINE:,} are allowed")
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
    """Refuses overlong numbers, and duplicate keys, of which YAML parsers silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key must not be a list or a mapping")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} appears a second time")
            seen.add(key.value)
            _check_nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_nodes(item)
    elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > MAX_NUMBER:
        raise ValueError(
            f"line {node.start_mark.line + 1}: a number has {len(node.value):,} characters; at most {MAX_NUMBER} are "
            "allowed"
        )


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describes the first bad key: its dotted path, its value, and what is accepted.

    Args:
        error: Raised by pydantic.
        model: The validated model, whose keys are suggested for a misspelt one.
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
