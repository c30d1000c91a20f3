"""The command `exfuse` for torchrun, with each process writing down what it saw: WATCH_FOLDER STOP_AFTER ARGUMENT...

Into WATCH_FOLDER/RANK.json go the samples of each step, as (epoch, index, digest of the augmented pixels), and a digest
of the trained parameters. In step STOP_AFTER (0: in none) the process of rank 1, and it alone, gets a Ctrl-C; the
checkpoint that follows takes three seconds, as that of a large network would.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from exfuse.cli.app import main
from exfuse.data.loader import Batch
from exfuse.models.exfuse import ExFuse
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.training import loop, segmentation

Seen = list[list[tuple[int, int, str]]]


def note_samples(batches: Iterable[Batch], seen: Seen) -> Iterator[Batch]:
    for batch in batches:
        digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in batch.images]
        keys = [(int(epoch), int(index)) for epoch, index in batch.keys]
        seen.append([(*key, digest) for key, digest in zip(keys, digests, strict=True)])
        yield batch


def run_and_watch(folder: Path, stop_after: int, arguments: list[str]) -> None:
    rank = os.environ["RANK"]
    build, load, save = segmentation.build_model, loop.training_loader, loop.save_checkpoint
    networks: list[ExFuse] = []
    seen: Seen = []

    def build_and_keep(info: ModelMetadata) -> ExFuse:
        networks.append(build(info))
        return networks[-1]

    def load_and_note(*loader_arguments: Any) -> Iterator[Batch]:
        for batch in note_samples(load(*loader_arguments), seen):
            if rank == "1" and len(seen) == stop_after:
                signal.raise_signal(signal.SIGINT)
            yield batch

    def save_slowly(*checkpoint: Any) -> Path:
        if len(seen) == stop_after:
            time.sleep(3)
        return save(*checkpoint)

    loop.save_checkpoint = save_slowly
    segmentation.build_model, loop.training_loader = build_and_keep, load_and_note
    sys.argv = ["exfuse", *arguments]
    try:
        main()
    finally:
        parameters = b"".join(parameter.detach().numpy().tobytes() for parameter in networks[0].parameters())
        found = {"samples": seen, "parameters": hashlib.sha256(parameters).hexdigest()}
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    run_and_watch(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
