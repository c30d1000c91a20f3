"""Packages that add backbones, data formats, losses, engines or export formats to the command line."""

from importlib.metadata import entry_points

from exfuse.errors import ConfigError, brief

GROUP = "exfuse.plugins"


def load_plugins() -> None:
    """Imports the modules that installed packages name as entry points of the group "exfuse.plugins".

    They call `exfuse.register_backbone`, `register_format`, `register_loss`, `register_engine` or
    `register_export_format`.

    Raises:
        ConfigError: If one cannot be imported.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # of other people's code
            raise ConfigError(
                f"{entry.name} ({entry.value}): the plugin cannot be imported ({brief(error)})"
            ) from error
