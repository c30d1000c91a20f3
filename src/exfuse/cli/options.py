"""Values that more than one command reads from its options."""

from exfuse.errors import ConfigError


def parse_scales(text: str) -> tuple[float, ...]:
    """Reads scales separated by commas.

    Raises:
        ConfigError: If one is no number between 0.1 and 10.
    """
    scales = []
    for part in text.split(","):
        try:
            scale = float(part)
        except ValueError as error:
            raise ConfigError(f"--scales {text}: {part!r} is not a number") from error
        if not 0.1 <= scale <= 10:
            raise ConfigError(f"--scales {text}: {part} is not between 0.1 and 10")
        scales.append(scale)
    return tuple(scales)
