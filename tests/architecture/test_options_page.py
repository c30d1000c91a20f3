"""docs/options.md is what its program writes."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_keys_is_that_of_the_types_that_recipes_are_read_into() -> None:
    program = runpy.run_path(str(DOCS / "options.py"))
    assert (DOCS / "options.md").read_text() == program["page"](), "run `python docs/options.py`"


def test_every_key_has_an_explanation() -> None:
    rows = [line for line in (DOCS / "options.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert all(len(row.split("|")[4].strip()) >= 12 for row in rows), rows
