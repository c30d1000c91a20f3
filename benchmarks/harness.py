"""What every comparison shares: interleaved rounds, a check that the machine is quiet, memory, and the page.

Each case runs once a round, in turn, so that a machine whose speed drifts slows all of them alike; ratios are taken
round by round. The reference runs twice in each round: if the two differ by more than `QUIET`, the rounds count
for nothing and are run again, and after `ATTEMPTS` of that nothing is reported.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

QUIET = 0.05
ATTEMPTS = 3
RESULTS = Path(__file__).parent / "results"


class NotQuietError(Exception):
    """Something else is going on on the machine."""


@dataclass(frozen=True)
class Timing:
    """How long a case took, and against the reference.

    Attributes:
        median_ms: Median of the rounds.
        ratio: Median of the rounds' ratios to the reference.
        ratio_min: The least of them.
        ratio_max: The greatest.
    """

    median_ms: float
    ratio: float
    ratio_min: float
    ratio_max: float

    def ratio_text(self) -> str:
        """Returns the ratio with its range."""
        return f"{self.ratio:.2f} ({self.ratio_min:.2f} to {self.ratio_max:.2f})"


def interleave(cases: Mapping[str, Callable[[], object]], reference: str, rounds: int) -> dict[str, Timing]:
    """Times all cases, one call of each a round.

    Args:
        cases: Name -> what to run; each is run twice before the first round.
        reference: The case to compare with.
        rounds: How many.

    Raises:
        NotQuietError: If the reference differs from itself, time and again.
    """
    again = f"{reference}, again"
    for _ in range(2):
        for step in cases.values():
            step()
    for _ in range(ATTEMPTS):
        timings = _rounds({**cases, again: cases[reference]}, reference, rounds)
        itself = timings.pop(again).ratio
        if abs(itself - 1) <= QUIET:
            return timings
        print(f"{reference} takes {itself:.3f} of its own time: the machine is not quiet", file=sys.stderr)
    raise NotQuietError(f"the machine was not quiet in {ATTEMPTS} attempts")


def _rounds(cases: Mapping[str, Callable[[], object]], reference: str, rounds: int) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        # Each round begins with another case, so that none always comes behind the same one.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            step = cases[name]
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    timings = {}
    for name in cases:
        ratios = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
        timings[name] = Timing(
            1000 * statistics.median(seconds[name]), statistics.median(ratios), min(ratios), max(ratios)
        )
    return timings


def peak_memory(program: str, *arguments: object) -> float:
    """Returns the peak resident memory in GiB of a process of its own; see `start_cold`."""
    return start_cold(program, *arguments)["gib"]


def start_cold(program: str, *arguments: object) -> dict[str, float]:
    """Runs a case in a process of its own, which prints what it took: see `report_memory`.

    Returns:
        "gib", the process's peak resident memory, and "first_s", the seconds from its start to the first result.
    """
    code = [sys.executable, program, "--memory", *map(str, arguments)]
    started = time.time()
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    report: dict[str, float] = json.loads(done.stdout)
    return {"gib": report["gib"], "first_s": report["first_at"] - started}


def report_memory(step: Callable[[], object]) -> None:
    """Runs a case twice and prints this process's peak memory in GiB, and when it had the first result."""
    step()
    first_at = time.time()
    step()
    print(json.dumps({"gib": peak_gib(), "first_at": first_at}))


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
        memory: What `start_cold` hands to the process that it starts, if it is used.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    if memory:
        parser.add_argument("--memory", nargs=len(memory), metavar=memory, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """Returns what the numbers depend on."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(["python", *sys.argv]),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Returns the processor's name as Linux gives it, and which of the fast bfloat16 units it has."""
    flags: set[str] = set()
    name = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() == "flags":
            flags = set(value.split())
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in flags]
    return f"{name} ({', '.join(units) or 'no bfloat16 units'})"


def write(name: str, title: str, notes: str, head: list[str], rows: list[list[str]], raw: object) -> None:
    """Writes a dated Markdown page and JSON into `results/`, and prints the page."""
    facts = environment()
    lines = [
        f"# {title}",
        "",
        f"`{facts['command']}`, {facts['date']}.",
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}.",
        "",
        notes,
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    page = "\n".join(lines)
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{facts['date']}-{name}"
    target.with_suffix(".md").write_text(page)
    target.with_suffix(".json").write_text(json.dumps({"environment": facts, "results": raw}, indent=1) + "\n")
    print(page)
