"""A process that holds a lock or a folder until a file is there: python -c HOLD_UNTIL_THERE PLACE FILE."""

HOLD_UNTIL_THERE = """
import sys, time
from pathlib import Path
from exfuse.atomic_io import file_lock
from exfuse.outputs.folder import claim_folder
path = Path(sys.argv[1])
with file_lock(path) if path.suffix == ".lock" else claim_folder(path, "exfuse train"):
    print("held", flush=True)
    end = time.monotonic() + 120
    while not Path(sys.argv[2]).exists() and time.monotonic() < end:
        time.sleep(0.05)
"""
