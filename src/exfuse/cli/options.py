"""Arguments and options that several commands share."""

from typing import Annotated

import typer

from exfuse.errors import ConfigError
from exfuse.inference.engines import AUTO, ENGINES
from exfuse.inference.engines.base import Precision

Recipe = Annotated[str, typer.Argument(help="A name from `exfuse recipes`, or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe: key=value, such as data.root=photos epochs=20."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the run folder's latest checkpoint, if there is one.")
]
Model = Annotated[str, typer.Argument(help="A model folder (runs/x/model), an export, or hf://OWNER/NAME.")]
Scales = Annotated[str, typer.Option(help="Scales to average, separated by commas: 0.75,1,1.25.")]
Flip = Annotated[bool, typer.Option("--flip", help="Also average with the mirrored image.")]
NetworkPrecision = Annotated[
    Precision | None, typer.Option("--precision", help="Precision of the network.  [default: the engine's own]")
]
NetworkEngine = Annotated[
    str | None,
    typer.Option("--engine", help=f"The engine: {AUTO}, {', '.join(ENGINES)}.  [default: torch, or an export's own]"),
]
FastestEngine = Annotated[
    str, typer.Option("--engine", help=f"The engine: {', '.join(ENGINES)}; {AUTO} chooses a fast installed one.")
]


def parse_scales(text: str) -> tuple[float, ...]:
    """Parses scales separated by commas.

    Raises:
        ConfigError: If one is not a number from 0.1 to 10.
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
