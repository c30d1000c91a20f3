"""One process of a group of two that trains several times: FOLDER.

FOLDER/RANK.json is a list of (overrides, resume); FOLDER/RANK_ended.json becomes one of (error, message, seconds).
"""

import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from exfuse.errors import ExFuseError
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
ended = []
for number, (overrides, resume) in enumerate(json.loads((folder / f"{rank}.json").read_text())):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # the store's names of the last group are not used again
    started = time.perf_counter()
    try:
        train(load_config("demo", overrides), resume, Console(quiet=True))
        ended.append(("", "", 0.0))
    except ExFuseError as error:
        ended.append((type(error).__name__, str(error), time.perf_counter() - started))
(folder / f"{rank}_ended.json").write_text(json.dumps(ended))
