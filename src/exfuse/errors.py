"""The exceptions this package raises on bad input, one for each kind of thing that can be bad."""

import difflib
from collections.abc import Iterable


class ExFuseError(Exception):
    """Base of all errors that are about the caller's input rather than about this package."""


class ConfigError(ExFuseError):
    """A recipe, an override, a dataset file or an argument is wrong; names the key and the value."""


class DataError(ExFuseError):
    """An image, a mask or a list of them is wrong; names the file."""


class CheckpointError(ExFuseError):
    """A checkpoint or a model folder cannot be read or written; names the path."""


class ExportError(ExFuseError):
    """An exported model could not be made or differs from the model it was made from."""


class OutputError(ExFuseError):
    """The place for a result is taken, or cannot be written to; names it."""


class TrainingError(ExFuseError):
    """A training run cannot go on; names the step and the samples where they are known."""


class ProcessError(ExFuseError):
    """Another process of the same run can no longer be reached; repeats why it stopped, where it could say so."""


class RequestError(ExFuseError):
    """A request to the prediction service is refused."""


def shown(text: str, limit: int = 80) -> str:
    """Returns a string that came from outside as a message may repeat it: quoted, on one line, at most `limit` long."""
    quoted = repr(text[:limit])
    return quoted if len(quoted) <= limit and len(text) <= limit else f"{quoted[: limit - 4]}...{quoted[0]}"


def brief(error: BaseException | str, limit: int = 300) -> str:
    """Returns a library's error message as one line of at most `limit` characters, to be part of one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def without_path(error: BaseException) -> str:
    """Returns the same for a message that names the file itself, as the system's own errors do."""
    return error.strerror if isinstance(error, OSError) and error.strerror else brief(error)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint to end an error message with: the nearest known name, or all of them.

    Args:
        name: What was given.
        known: What would have been accepted.
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(shown(option) for option in near)}?"
    return f"known: {brief(', '.join(options), limit=1000) if options else 'none'}"
