"""What every comparison shares: interleaved rounds, a check that the machine is quiet, memory, and the page.

Each case runs once a round, in an order that is drawn anew, so that a machine whose speed drifts slows all of them
alike, none always comes behind the same one and none behind itself; ratios are taken round by round. The reference
runs twice in each round: if the two differ by more than `QUIET`, the rounds count for nothing and are run again, and
after `ATTEMPTS` of that nothing is reported.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUIET = 0.05
ATTEMPTS = 3
PAIR = 2
AGAIN = ", again"
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("exfuse", "torch", "openvino", "onnxruntime", "nncf", "segmentation-models-pytorch", "transformers")


class NotQuietError(Exception):
    """Something else is going on on the machine."""


@dataclass(frozen=True)
class Timing:
    """How long a case took, and against the reference.

    Attributes:
        seconds: Of each round.
        of_reference: What the reference took in the same rounds.
    """

    seconds: tuple[float, ...]
    of_reference: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median of the rounds."""
        return 1000 * statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios to the reference."""
        return statistics.median(self.ratios())

    def ratios(self) -> list[float]:
        """Returns the ratio to the reference of each round."""
        return [a / b for a, b in zip(self.seconds, self.of_reference, strict=True)]

    def against(self, other: "Timing") -> "Timing":
        """Returns this case with another one of the same rounds for its reference."""
        return Timing(self.seconds, other.seconds)

    def ratio_text(self) -> str:
        """Returns the ratio with its range."""
        return _with_range(self.ratios())

    def speed_text(self) -> str:
        """Returns how many times faster than the reference it is, with the range."""
        return _with_range([1 / ratio for ratio in self.ratios()])

    def to_json(self) -> dict[str, Any]:
        """Returns the median, the ratio and what each round took."""
        milliseconds = [round(1000 * value, 3) for value in self.seconds]
        return {"median_ms": round(self.median_ms, 3), "ratio": round(self.ratio, 4), "ms": milliseconds}


def _with_range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def interleave(cases: Mapping[str, Callable[[], object]], reference: str, rounds: int) -> dict[str, Timing]:
    """Times all cases, one call of each a round.

    Args:
        cases: Name -> what to run; each is run twice before the first round.
        reference: The case to compare with.
        rounds: How many.

    Returns:
        Name -> how long it took; the reference's second run is named `again`.

    Raises:
        NotQuietError: If the reference differs from itself, time and again.
    """
    for _ in range(2):
        for step in cases.values():
            step()
    # Of two cases both run twice, so that each can always follow the other.
    doubled = cases if len(cases) == PAIR else (reference,)
    twice = {**cases, **{again(name): cases[name] for name in doubled}}
    for attempt in range(ATTEMPTS):
        timings = _rounds(twice, reference, rounds, attempt)
        itself = timings[again(reference)].ratio
        if abs(itself - 1) <= QUIET:
            return timings
        print(f"{reference} takes {itself:.3f} of its own time: the machine is not quiet", file=sys.stderr)
    raise NotQuietError(f"the machine was not quiet in {ATTEMPTS} attempts")


def again(reference: str) -> str:
    """Returns the name of a reference's second run in each round."""
    return f"{reference}{AGAIN}"


def _plain(name: str) -> str:
    return name.removesuffix(AGAIN)


def _rounds(cases: Mapping[str, Callable[[], object]], reference: str, rounds: int, seed: int) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    rng, last = np.random.default_rng(seed), ""
    several = len({_plain(name) for name in cases}) > 1
    for _ in range(rounds):
        order = rng.permutation(list(cases)).tolist()
        # What has just run finds its own memory warm.
        while several and any(_plain(one) == _plain(other) for one, other in itertools.pairwise([last, *order])):
            order = rng.permutation(order).tolist()
        last = order[-1]
        for name in order:
            step = cases[name]
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(taken), tuple(seconds[reference])) for name, taken in seconds.items()}


def peak_memory(program: str, *arguments: object) -> float:
    """Returns the peak resident memory in GiB of a process of its own, which calls `report_memory`."""
    code = [sys.executable, program, "--memory", *map(str, arguments)]
    return float(subprocess.run(code, check=True, capture_output=True, text=True).stdout.split()[-1])


def report_memory(step: Callable[[], object]) -> None:
    """Runs a case twice and prints this process's peak memory in GiB."""
    step()
    step()
    print(peak_gib())


def peak_gib() -> float:
    """Returns this process's peak resident memory; `ru_maxrss` would begin with the parent's."""
    return memory_gib("VmHWM")


def memory_gib(key: str) -> float:
    """Returns one of the kernel's own counts of this address space, of the names in /proc/self/status."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) / 2**20


def parse_arguments(description: str, memory: tuple[str, ...] = ()) -> argparse.Namespace:
    """Reads what the benchmarks of networks take from the command line.

    Args:
        description: The script's docstring.
        memory: What `peak_memory` hands to the process that it starts, if it is used.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    if memory:
        parser.add_argument("--memory", nargs=len(memory), metavar=memory, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    name, unit = processor()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python", *sys.argv]),
        "processor": name,
        "bfloat16 unit": unit,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> tuple[str, str]:
    """Returns the processor's name as Linux gives it, and its fastest unit for bfloat16, which decides our figures."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    flags = facts.get("flags", "").split()
    unit = next((unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags), "no_bf16")
    return facts.get("model name", platform.processor()), unit


def place_of(name: str, suffix: str) -> Path:
    """Returns where a result is kept, with today's date, among those of the processor's kind; makes the folder."""
    facts = environment()
    folder = RESULTS / facts["bfloat16 unit"]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{facts['date']}-{name}{suffix}"


def write(
    name: str, title: str, notes: str, head: list[str], rows: list[list[str]], raw: Sequence[Mapping[str, Any]]
) -> None:
    """Prints a Markdown page; writes it, and a JSON of a line for each of `raw`, where `place_of` says."""
    facts = environment()
    lines = [
        f"# {title}",
        "",
        f"`{facts['command']}`, {facts['date']}.",
        f"{facts['processor']} ({facts['bfloat16 unit']}), {facts['threads']} threads, "
        f"{', '.join(f'{package} {found}' for package, found in facts['versions'].items())}.",
        "",
        notes,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    page = "\n".join(lines)
    place_of(name, ".md").write_text(page)
    results = ",\n".join(json.dumps(one) for one in raw)
    place_of(name, ".json").write_text(f'{{"environment": {json.dumps(facts)},\n"results": [\n{results}\n]}}\n')
    print(page)
