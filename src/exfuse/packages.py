"""Optional packages: whether they are installed, and how to install them."""

from collections.abc import Iterable
from importlib.util import find_spec

from exfuse.errors import ConfigError


def is_installed(packages: Iterable[str]) -> bool:
    """Returns whether all packages can be imported."""
    return not _missing(packages)


def require(packages: Iterable[str], extra: str) -> None:
    """Checks that packages are installed.

    Args:
        packages: Their import names.
        extra: The extra of exfuse that installs them.

    Raises:
        ConfigError: If one is not installed; the message contains the command that installs it.
    """
    if missing := _missing(packages):
        raise ConfigError(f"{missing[0]} is not installed; pip install 'exfuse[{extra}]'")


def _missing(packages: Iterable[str]) -> list[str]:
    specs = {package: find_spec(package) for package in packages}
    # Any folder with a package's name is found as well, but has no origin.
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]
