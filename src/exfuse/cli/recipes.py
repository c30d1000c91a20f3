"""`exfuse recipes`."""

from typing import Annotated

import typer
from rich.console import Console

from exfuse.training.recipes import read_recipe_text, recipe_names, recipe_summary


def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, to be saved and changed.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""
    console = Console()
    if name is not None:
        console.print(read_recipe_text(name), highlight=False, markup=False, soft_wrap=True, end="")
        return
    for recipe in recipe_names():
        console.print(f"[bold]{recipe}[/]  {recipe_summary(recipe)}", highlight=False, soft_wrap=True)
