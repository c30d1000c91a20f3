"""Values that more than one command reads from its options."""

from exfuse.errors import ConfigError, did_you_mean
from exfuse.evaluation.measures import MEASURES


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


def parse_measures(text: str) -> tuple[str, ...]:
    """Reads names of `MEASURES` separated by commas, or "all".

    Raises:
        ConfigError: If one is unknown.
    """
    if text == "all":
        return tuple(MEASURES)
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"--measures {text}: there is no measure {name!r}; {did_you_mean(name, MEASURES)}")
    return names
