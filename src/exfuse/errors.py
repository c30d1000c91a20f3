"""The exceptions this package raises on bad input, one per kind of problem."""

import difflib
from collections.abc import Iterable


class ExFuseError(Exception):
    """Base of all errors caused by the caller's input rather than by this package."""


class ConfigError(ExFuseError):
    """A recipe, override, dataset file or argument is wrong; the message names the key and the value."""


class DataError(ExFuseError):
    """An image, mask or list of images is wrong; the message names the file."""


class CheckpointError(ExFuseError):
    """A checkpoint or model folder cannot be read or written; the message names the path."""


class ExportError(ExFuseError):
    """An export failed, or the exported model differs from the original."""


class OutputError(ExFuseError):
    """An output path is taken or cannot be written to; the message names it."""


class TrainingError(ExFuseError):
    """A training run cannot continue; the message names the step and, if known, the samples."""


class ProcessError(ExFuseError):
    """Another process of the same run cannot be reached; the message contains the error that ended it, if known."""


class RequestError(ExFuseError):
    """A request to the prediction service is refused."""


def shown(text: str, limit: int = 80) -> str:
    """Returns an untrusted string for use in a message: quoted, on one line, at most `limit` characters long."""
    quoted = repr(text[:limit])
    return quoted if len(quoted) <= limit and len(text) <= limit else f"{quoted[: limit - 4]}...{quoted[0]}"


def brief(error: BaseException | str, limit: int = 300) -> str:
    """Returns a library's error message on one line of at most `limit` characters, for use in a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def without_path(error: BaseException) -> str:
    """Returns an error's brief message; for errors of the operating system, without the path."""
    return error.strerror if isinstance(error, OSError) and error.strerror else brief(error)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint to end an error message with: the known names most like the given one, else all of them.

    Args:
        name: The name that was given.
        known: The names that are accepted.
    """
    options = sorted(set(known))
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(shown(option) for option in near)}?"
    return f"known: {brief(', '.join(options), limit=1000) if options else 'none'}"
