"""What is printed: strings that come from files are shown literally and cannot steer the terminal."""

import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

# Controls, lone surrogates, line and paragraph separators.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# They change the direction of what follows, so that a name can look like another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, kept: str = "") -> str:
    r"""Returns a text with everything that could steer a terminal as an escape, such as `\x1b`.

    Args:
        text: From anywhere.
        kept: Characters that stay as they are, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in kept and (unicodedata.category(char) in _ESCAPED_CATEGORIES or char in _DIRECTIONS)
        else char
        for char in text
    )


class _LiteralConsole(Console):
    """A console whose every text, in tables and progress bars as well, is printable; only its own controls pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, kept="\n"))


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """Returns where a command prints: without markup, emoji codes or highlighting in what is printed.

    Args:
        stderr: Print to the standard error instead of the standard output.
        quiet: Print nothing.
    """
    return _LiteralConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def progress_bar(console: Console) -> Progress:
    """Returns a bar that is there while something is done; nothing where the output is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
