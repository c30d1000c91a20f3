"""A fixed run keeps its bits: refactoring must not change what training computes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from exfuse.data.synthetic import write_scenes

# SHA-256 of the final weights, by processor and torch: oneDNN and MKL choose their kernels by both.
# `benchmarks/fixed_runs.py` prints hashes of longer runs, before and after a change on the same machine.
EXPECTED = {
    ("7d35c8472c06", "2.13.0+cpu"): "180afb56fbeb15d30ef5d49363f3a5c0d90cc14781058b91b2dc16a02aeec6b9",
}


def processor() -> str:
    """Returns a name for the processor that is the same where the same instructions and caches are found."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    kept = ("vendor_id", "cpu family", "model\t", "stepping", "flags", "cache size")
    described = "\n".join(line for line in lines if line.startswith(kept))
    return hashlib.sha256(described.encode()).hexdigest()[:12]


@pytest.mark.nightly  # two minutes, and processors differ
def test_the_weights_of_a_fixed_run_are_what_they_were(tmp_path: Path) -> None:
    key = (processor(), torch.__version__)
    if key not in EXPECTED:
        pytest.skip(f"no hash was recorded for {key}")
    write_scenes(tmp_path / "scenes", {"train": 96, "val": 8})
    overrides = [
        f"data.root={tmp_path / 'scenes'}", f"output={tmp_path / 'run'}", "epochs=1", "evaluate_every=1",
        "precision=fp32", "data.workers=0", "model.decoder_width=32",
    ]  # fmt: skip
    command = [sys.executable, "-m", "exfuse", "train", "demo", *overrides]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    tensors = load_file(tmp_path / "run" / "model_last" / "model.safetensors")
    content = b"".join(sorted(value.numpy().tobytes() for value in tensors.values()))
    assert hashlib.sha256(content).hexdigest() == EXPECTED[key]
