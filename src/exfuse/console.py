"""Terminal output: strings from files are printed literally and cannot control the terminal."""

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
# They change the direction of the text that follows, which can make one name look like another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, kept: str = "") -> str:
    r"""Returns a text with every character that could control a terminal replaced by an escape, such as `\x1b`.

    Args:
        text: From any source.
        kept: Characters to leave unchanged, such as a newline.
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
    """A console that makes all text printable, including tables and progress bars; only its own controls pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, kept="\n"))


def terminal(stderr: bool = False, quiet: bool = False) -> Console:
    """Returns the console of a command; it interprets no markup or emoji codes and highlights nothing.

    Args:
        stderr: Whether to print to standard error instead of standard output.
        quiet: Whether to print nothing.
    """
    return _LiteralConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def progress_bar(console: Console) -> Progress:
    """Returns a progress bar that disappears when done; it is disabled if the output is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
