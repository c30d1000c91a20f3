"""`exfuse recipes`."""

from typing import Annotated

import typer
from rich.text import Text

from exfuse.console import terminal
from exfuse.training.recipes import explained, load_any, read_recipe_text, recipe_names, recipe_summary


def recipes_command(
    name: Annotated[str | None, typer.Argument(help="A recipe to print, as a start for your own.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print all keys with an explanation, including defaults.")
    ] = False,
) -> None:
    """List the package's recipes, or print one."""
    console = terminal()
    if name is not None:
        text = explained(load_any(name)) if full else read_recipe_text(name)
        console.print(text, soft_wrap=True, end="")
        return
    for recipe in recipe_names():
        console.print(Text.assemble((recipe, "bold"), f"  {recipe_summary(recipe)}"), soft_wrap=True)
