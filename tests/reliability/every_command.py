"""Runs commands of exfuse one after the other in one process: COMMANDS_FILE, a JSON list of lists of arguments."""

import json
import sys
from importlib import import_module
from pathlib import Path

from exfuse.cli.app import main

if __name__ == "__main__":  # a child that is spawned, such as the one that makes int8, imports this file
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if arguments[0] == "demo":  # imported only now, as `main` would: it brings matplotlib
            import_module("exfuse.cli.demo").SCENES = {"train": 4, "val": 2, "heldout": 1}
        sys.argv = ["exfuse", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                sys.exit(f"exfuse {' '.join(arguments)}: exit code {end.code}")
