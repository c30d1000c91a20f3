"""Writes docs/options.md, the reference of all keys of a recipe, from the types that recipes are read into.

python docs/options.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from exfuse.training.config import AblationConfig, PretrainingConfig, RunConfig, TrainingConfig

PAGE = Path(__file__).with_name("options.md")
HEAD = """# Keys of a recipe

This page is made by `python docs/options.py`; `exfuse recipes NAME --full` prints the same for one recipe.
A key that a recipe leaves out has its default.
"""
KINDS: tuple[type[RunConfig], ...] = (TrainingConfig, PretrainingConfig, AblationConfig)


def page() -> str:
    """Returns the page: all keys of `exfuse train`, and for the other commands those that differ."""
    parts, known = [HEAD.rstrip()], set[str]()
    for kind in KINDS:
        rows = [row for row in table(kind, "") if row not in known]
        known.update(rows)
        parts.append(
            f"## `{kind.command}`\n\n| key | default | values | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"


def table(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields a row for each key of a section and of those in it."""
    schema = section.model_json_schema()["properties"]
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from table(field.annotation, f"{prefix}{key}.")
        else:
            default = "runs/NAME" if prefix + key == "output" else shown(field.default)
            yield f"| `{prefix}{key}` | {default} | {values(schema[key])} | {field.description} |"


def shown(value: Any) -> str:
    """Returns a value as YAML has it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)


def values(schema: dict[str, Any]) -> str:
    """Returns in words what a key takes."""
    if "anyOf" in schema:
        return " or ".join(values(one) for one in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema["type"] == "array":
        return f"{len(schema['prefixItems'])} of: {values(schema['prefixItems'][0])}"
    if schema["type"] in ("integer", "number"):
        low, high = (schema.get(f"exclusive{side.title()}", schema.get(side)) for side in ("minimum", "maximum"))
        open_low, open_high = ("above " * ("exclusiveMinimum" in schema)), ("below " * ("exclusiveMaximum" in schema))
        return f"{open_low}{low:g} to {open_high}{high:g}" if schema["type"] == "number" else f"{low:,} to {high:,}"
    return {"boolean": "true, false", "null": "null", "string": "a path" if "format" in schema else "a name"}[
        schema["type"]
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
