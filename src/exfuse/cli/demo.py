"""`exfuse demo`."""

from pathlib import Path
from typing import Annotated

import typer

from exfuse.atomic_io import atomic_folder
from exfuse.cli.predict import predict_command
from exfuse.console import terminal
from exfuse.data.synthetic import write_scenes
from exfuse.evaluation.report import scores_table
from exfuse.outputs.folder import claim_folder
from exfuse.training.recipes import load_config
from exfuse.training.segmentation import train

SCENES = {"train": 400, "val": 100, "heldout": 8}


def demo_command(
    recipe: Annotated[str, typer.Option(help="demo for ExFuse, demo_gcn for the baseline.")] = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for all results.")] = Path("runs/demo"),
) -> None:
    """Draw a small data set, train, evaluate and predict; needs no data and no internet, and takes a few minutes."""
    console = terminal()
    data, run = output / "scenes", output / Path(recipe).stem
    with claim_folder(output, "exfuse demo"):
        if not data.exists():
            console.print(f"drawing {sum(SCENES.values())} scenes into {data}")
            with atomic_folder(data) as staged:
                write_scenes(staged, SCENES)
        report = train(load_config(recipe, [f"data.root={data}", f"output={run}"]), resume=True, console=console)
        heldout = [str(path) for path in sorted((data / "images").glob("heldout_*.jpg"))]
        predict_command(str(run / "model"), heldout, run / "predictions")
    console.print(scores_table(report))
    for label, path in (
        ("overlays", run / "predictions" / "overlays"),
        ("report", run / "report.html"),
        ("model", run / "model"),
    ):
        console.print(f"{label:<9} {path}", soft_wrap=True)
