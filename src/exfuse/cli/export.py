"""`exfuse export`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from exfuse.cli.images import find_images
from exfuse.console import terminal
from exfuse.data.datasets import open_dataset
from exfuse.data.samples import Sample, UInt8Array, read_image
from exfuse.data.synthetic import make_scene
from exfuse.errors import ConfigError
from exfuse.evaluation.evaluate import check_classes
from exfuse.evaluation.report import spread
from exfuse.export.formats import EXPORT_FORMATS
from exfuse.export.verify import ParityReport
from exfuse.export.write import ExportPrecision, check_request, export_model
from exfuse.models.storage.folder import find_model, read_metadata
from exfuse.models.storage.metadata import ModelMetadata

DRAWN_IMAGES = 8
LONGEST_SIDE = 1024  # pixels of an image that is compared


def export_command(
    model: Annotated[str, typer.Argument(help="A model folder (runs/x/model), or hf://OWNER/NAME.")],
    export_format: Annotated[str, typer.Option("--format", help=f"{', '.join(EXPORT_FORMATS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    precision: Annotated[
        ExportPrecision, typer.Option(help="fp32, or int8 (openvino only; needs --data or --images to calibrate).")
    ] = "fp32",
    data: Annotated[Path | None, typer.Option(help="A labelled data set to check with: a folder or a file.")] = None,
    split: Annotated[str, typer.Option(help="Which split of it.")] = "val",
    images: Annotated[str | None, typer.Option(help="Or images without labels: a file, a folder or a glob.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many images to check with at most.")] = 100,
) -> None:
    """Write a model as a file for production, checked against the network before it gets its name."""
    console = terminal()
    check_request(output, export_format, precision)
    info = read_metadata(find_model(model))
    samples = check_samples(info, data, split, images, limit)
    if not samples:
        if precision == "int8":
            raise ConfigError("--precision int8 is calibrated on images: give --data or --images")
        console.print("no --data, no --images: checked on drawn scenes", style="yellow")
        samples = [unlabelled(make_scene(seed).image, info) for seed in range(DRAWN_IMAGES)]
    with console.status(f"writing {export_format}, and comparing {len(samples)} images"):
        agreements = export_model(model, output, export_format, precision, samples)
    console.print(agreement_table(agreements))
    console.print(f"export  {output}", soft_wrap=True)


def check_samples(info: ModelMetadata, data: Path | None, split: str, images: str | None, limit: int) -> list[Sample]:
    """Reads the images to check an export with, spread evenly over what there is; none if nothing was named."""
    if data is not None and images is not None:
        raise ConfigError("--data and --images: give one of them")
    if data is not None:
        dataset = open_dataset(data, split)
        check_classes(info, dataset)
        ignored = dataset.classes.ignore_index
        samples = [cropped(dataset[index]) for index in spread(len(dataset), limit)]
        return [Sample(s.image, np.where(s.mask == ignored, info.ignore_index, s.mask)) for s in samples]
    if images is None:
        return []
    paths = list(find_images([images]).values())
    return [cropped(unlabelled(read_image(paths[index]), info)) for index in spread(len(paths), limit)]


def cropped(sample: Sample) -> Sample:
    """Returns a sample without what is beyond `LONGEST_SIDE`: many photographs are held and computed whole."""
    image, mask = (np.ascontiguousarray(array[:LONGEST_SIDE, :LONGEST_SIDE]) for array in (sample.image, sample.mask))
    return Sample(image, mask)


def unlabelled(image: UInt8Array, info: ModelMetadata) -> Sample:
    """Returns an image of which no pixel has a known class."""
    return Sample(image, np.full(image.shape[:2], info.ignore_index, dtype=np.uint8))


def agreement_table(agreements: dict[str, ParityReport]) -> Table:
    """Returns what was compared, as a table with a column for each precision."""
    images = next(iter(agreements.values())).images
    table = Table("", *agreements, title=f"export against network, {images} images")
    found = agreements.values()
    error = "largest difference of a score, against the largest score"
    table.add_row(error, *(f"{agreement.logit_error:.1e}" for agreement in found))
    table.add_row("labels equal", *(f"{agreement.labels_equal:.4%}" for agreement in found))
    without_ties = [f"{agreement.labels_equal_outside_ties:.4%}" for agreement in found]
    table.add_row("labels equal, the network's ties left out", *without_ties)
    scores = [agreement.mean_iou for agreement in found if agreement.mean_iou is not None]
    if scores:
        table.add_row("mean IoU of the network", *(f"{100 * network:.2f}" for network, _ in scores))
        table.add_row("mean IoU of the export", *(f"{100 * export:.2f}" for _, export in scores))
    return table
