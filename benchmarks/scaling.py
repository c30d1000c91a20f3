"""Time against the side of the image and against the batch: ours and the nearest peer, pixels to labels in OpenVINO.

python benchmarks/scaling.py [--rounds 5]
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness import Timing, again, interleave, place_of, write
from peers import REFERENCE, convert, make_step

NETWORKS = (REFERENCE, "stride4 narrow, SEB 128", "full narrow, SEB 128")
SIDES = (256, 384, 512, 768, 1024)
BATCHES = (1, 2, 4, 8)
SIDE_OF_BATCHES = 512


def draw(path: Path, timings: dict[tuple[int, int], dict[str, Timing]]) -> None:
    """Draws time against the side, and time of an image against the batch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    by_side, by_batch = figure.subplots(1, 2)
    for name in NETWORKS:
        by_side.plot(SIDES, [timings[side, 1][name].median_ms for side in SIDES], "o-", label=name)
        a_piece = [timings[SIDE_OF_BATCHES, batch][name].median_ms / batch for batch in BATCHES]
        by_batch.plot(BATCHES, a_piece, "o-", label=name)
    by_side.set(xlabel="side, pixels", ylabel="ms", xscale="log", yscale="log", xticks=SIDES, xticklabels=SIDES)
    by_batch.set(xlabel=f"batch, {SIDE_OF_BATCHES} x {SIDE_OF_BATCHES}", ylabel="ms an image", xticks=BATCHES)
    by_side.minorticks_off()
    by_batch.set_ylim(bottom=0)
    by_batch.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures all sides and batches and writes the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    timings: dict[tuple[int, int], dict[str, Timing]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: Path(temporary) / f"{index}.xml" for index, name in enumerate(NETWORKS)}
        for name in NETWORKS[1:]:
            convert(name, paths[name], SIDE_OF_BATCHES)
        for side, batch in [*((side, 1) for side in SIDES), *((SIDE_OF_BATCHES, batch) for batch in BATCHES[1:])]:
            convert(REFERENCE, paths[REFERENCE], side, batch)
            steps = {name: make_step(path, "bf16", side, batch) for name, path in paths.items()}
            timings[side, batch] = interleave(steps, REFERENCE, arguments.rounds)
    figure = place_of("scaling", ".png")
    draw(figure, timings)
    write(
        "scaling",
        "Time against size and batch, OpenVINO bf16",
        f"ms of a batch, with the ratio to {REFERENCE}, median of the rounds; the peer is converted for each size and "
        "batch alone, ours once for all. The last column is the peer's second run in each round.\n\n"
        f"![the same as curves]({figure.name})",
        ["side", "batch", *NETWORKS, again(REFERENCE)],
        [
            [str(side), str(batch), *(f"{timing.median_ms:.0f} ({timing.ratio:.2f})" for timing in of_names.values())]
            for (side, batch), of_names in timings.items()
        ],
        [
            {"side": side, "batch": batch, "network": name, **timing.to_json()}
            for (side, batch), of_names in timings.items()
            for name, timing in of_names.items()
        ],
    )


if __name__ == "__main__":
    main()
