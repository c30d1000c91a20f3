"""What tests of recipes ask of them."""

from typing import Any

import pytest
import yaml

from exfuse.errors import ConfigError
from exfuse.training.recipes import (
    load_config,
    read_recipe_text,
)


def leaf_keys(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in content.items():
        keys += leaf_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return keys


DEMO_KEYS = leaf_keys(yaml.safe_load(read_recipe_text("demo")))


def refusal(*overrides: str, recipe: str = "demo") -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)
