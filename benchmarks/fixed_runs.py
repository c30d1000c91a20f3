"""Hashes of the weights and records of three short runs, to see whether a change of the code changed what it computes.

python benchmarks/fixed_runs.py CAMVID IMAGENETTE

One thread, fp32. Equal lines mean equal bits; another processor or another version of torch gives others.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from exfuse.data.synthetic import write_scenes

TIMES = {"seconds_per_step", "waiting"}
# Command, recipe, data and, where a default has changed since the first hashes were recorded, the value it had then.
RUNS: tuple[tuple[str, str, str, list[str]], ...] = (
    ("train", "demo", "scenes", []),
    ("train", "camvid_resnet18", "camvid", []),
    ("pretrain", "imagenette_resnet18", "imagenette", ["model.head_hidden_width=0"]),
)
COMMON = ["epochs=1", "evaluate_every=1", "log_every=1", "precision=fp32", "data.workers=0"]


def main() -> None:
    """Runs 60 steps of the demo, 20 on CamVid and 20 of pre-training, and prints a line for each."""
    camvid, imagenette = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", {"train": 480, "val": 16})
        take_camvid(camvid, root / "camvid")
        take_imagenette(imagenette, root / "imagenette")
        for command, recipe, data, options in RUNS:
            run = root / recipe
            call = ["exfuse", command, recipe, *COMMON, *options, f"data.root={root / data}", f"output={run}"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-m", *call], env=environment, stdout=subprocess.DEVNULL, check=True)
            print(f"{recipe:20} {steps(run):3} steps  weights {weights(run)}  records {records(run)}", flush=True)


def take_camvid(source: Path, target: Path) -> None:
    """Makes a data set of CamVid's first 160 training images, which are 20 steps, and 4 of its validation images."""
    target.mkdir()
    for name in ("images", "masks", "classes.json"):
        (target / name).symlink_to(source / name)
    for split, count in (("train", 160), ("val", 4)):
        lines = (source / f"{split}.txt").read_text().splitlines()[:count]
        (target / f"{split}.txt").write_text("\n".join(lines))


def take_imagenette(source: Path, target: Path) -> None:
    """Makes a folder of 128 training images of each class, which are 20 steps, and 4 of its validation images."""
    for split, count in (("train", 128), ("val", 4)):
        for kind in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            (target / split / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:count]:
                (target / split / kind.name / image.name).symlink_to(image)


def steps(run: Path) -> int:
    """Returns how many steps a run took."""
    return max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())


def weights(run: Path) -> str:
    """Returns a hash of all tensors of a run's models, whatever their names: in the order of their shapes and bytes."""
    tensors = [
        f"{tuple(value.shape)}".encode() + value.numpy().tobytes()
        for path in sorted(run.glob("*/model.safetensors"))
        for value in load_file(path).values()
    ]
    return hashlib.sha256(b"".join(sorted(tensors))).hexdigest()


def records(run: Path) -> str:
    """Returns a hash of the recorded losses, rates and scores."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()
