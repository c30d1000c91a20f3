"""`exfuse compare`."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.table import Table

from exfuse.atomic_io import free_name
from exfuse.cli.options import Flip, Model, NetworkEngine, NetworkPrecision, Scales, parse_scales
from exfuse.console import terminal
from exfuse.data.datasets import SegmentationDataset, open_dataset
from exfuse.data.stats import compute_stats
from exfuse.distributed import only_process
from exfuse.drawing import colorize
from exfuse.evaluation.compare import Comparison, compare
from exfuse.evaluation.evaluate import describe_protocol, score_split
from exfuse.export.open import reference_engine
from exfuse.inference.tta import TestTimeAugmentation
from exfuse.models.storage.metadata import check_classes
from exfuse.outputs.folder import claim_folder
from exfuse.predictor import Predictor


def compare_command(
    first: Model,
    second: Model,
    data: Annotated[Path, typer.Argument(help="A data set: a folder or a dataset file.")],
    split: Annotated[str, typer.Option(help="The split to score.")] = "val",
    scales: Scales = "1",
    flip: Flip = False,
    engine: NetworkEngine = None,
    precision: NetworkPrecision = None,
    show: Annotated[int, typer.Option(min=0, help="Number of images to list and draw, largest difference first.")] = 8,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the JSON and the pictures.  [default: comparison, if free]"),
    ] = None,
) -> None:
    """Compare two models on the same images: paired difference with its interval, and the images that differ most."""
    console, dist = terminal(), only_process("exfuse compare")
    augmentation = TestTimeAugmentation(parse_scales(scales), flip)
    with claim_folder(output or free_name(Path("comparison")), "exfuse compare") as folder:
        folder.check_unchanged()
        dataset = open_dataset(data, split)
        predictors = [
            Predictor.from_pretrained(model, reference_engine(model, engine), precision, augmentation)
            for model in (first, second)
        ]
        for predictor in predictors:
            check_classes(predictor.info, dataset)  # checks both models before the first one is scored
        fingerprint = compute_stats(dataset).fingerprint
        counts = [score_split(predictor, dataset, dist, console).per_image for predictor in predictors]
        result = compare(tuple(entry.name for entry in dataset.entries), counts[0], counts[1])
        console.print(comparison_table(result, f"{split}: {len(dataset)} images", show))
        console.print(f"second against first: {result.verdict()}", soft_wrap=True)
        protocol = describe_protocol(predictors[0], dataset, fingerprint) | {"first": first, "second": second}
        content = json.dumps(result.to_json() | {"protocol": protocol}, indent=2, allow_nan=False) + "\n"
        folder.write("comparison.json", content.encode())
        indices = {entry.name: index for index, entry in enumerate(dataset.entries)}
        for rank, image in enumerate(result.images[:show]):
            picture = side_by_side(dataset, indices[image.name], predictors)
            # Truncated, because the prefix would make the longest allowed name too long for the file system.
            folder.save(f"images/{rank:02d}_{Path(image.name).name[:60]}.jpg", picture, quality=92)
        folder.remove_older()
        console.print(f"scores by image and pictures  {folder.folder}", soft_wrap=True)


def comparison_table(result: Comparison, title: str, show: int) -> Table:
    """Returns the scores of the `show` images with the largest difference, and of the whole split."""
    table = Table(title=title)
    for column in ("image", "first", "second", "difference"):
        table.add_column(column, justify="left" if column == "image" else "right")
    for image in result.images[:show]:
        difference = f"{100 * (image.second - image.first):+.2f}"
        table.add_row(image.name, f"{100 * image.first:.2f}", f"{100 * image.second:.2f}", difference)
    table.add_section()
    table.add_row("whole split", f"{100 * result.first:.2f}", f"{100 * result.second:.2f}", "")
    return table


def side_by_side(dataset: SegmentationDataset, index: int, predictors: list[Predictor]) -> Image.Image:
    """Returns an image, its ground truth and each model's prediction, from left to right."""
    sample = dataset[index]
    labels = [sample.mask, *(predictor(sample.image).labels for predictor in predictors)]
    return Image.fromarray(
        np.concatenate([sample.image, *(colorize(one, dataset.classes.palette) for one in labels)], axis=1)
    )
