"""`exfuse export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exfuse.console import terminal
from exfuse.export.formats import EXPORT_FORMATS
from exfuse.export.verify import ParityReport
from exfuse.export.write import ExportPrecision, export_model


def export_command(
    model: Annotated[str, typer.Argument(help="A model folder (runs/x/model), or hf://OWNER/NAME.")],
    export_format: Annotated[str, typer.Option("--format", help=f"The format: {', '.join(EXPORT_FORMATS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    precision: Annotated[
        ExportPrecision, typer.Option(help="fp32, or int8 (openvino only; needs --data or --images to calibrate).")
    ] = "fp32",
    data: Annotated[
        Path | None, typer.Option(help="A labelled data set for the check: a folder or a dataset file.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split of --data to use.")] = "val",
    images: Annotated[
        str | None, typer.Option(help="Images without labels instead of --data: a file, a folder or a glob.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of images for the check.")] = 100,
) -> None:
    """Write a model as a file for other runtimes; the output appears only if it matches the network."""
    console = terminal()
    if data is None and images is None:
        console.print("neither --data nor --images: checking on drawn scenes", style="yellow")
    with console.status(f"writing {export_format} and comparing it with the network"):
        reports = export_model(
            model, output, export_format, precision, data=data, split=split, images=images, limit=limit
        )
    console.print(parity_table(reports))
    console.print(f"export  {output}", soft_wrap=True)


def parity_table(reports: dict[str, ParityReport]) -> Table:
    """Returns the comparison as a table with one column per precision."""
    images = next(iter(reports.values())).images
    table = Table("", *reports, title=f"export against network, {images} images")
    found = reports.values()
    error = "largest error of a logit, relative to the largest logit"
    table.add_row(error, *(f"{report.logit_error:.1e}" for report in found))
    table.add_row("labels equal", *(f"{report.labels_equal:.4%}" for report in found))
    without_ties = [f"{report.labels_equal_outside_ties:.4%}" for report in found]
    table.add_row("labels equal, without the network's ties", *without_ties)
    scores = [report.mean_iou for report in found if report.mean_iou is not None]
    if scores:
        table.add_row("mean IoU of the network", *(f"{100 * network:.2f}" for network, _ in scores))
        table.add_row("mean IoU of the export", *(f"{100 * export:.2f}" for _, export in scores))
    return table
