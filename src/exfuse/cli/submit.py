"""`exfuse submit`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from exfuse.cli.options import Flip, Model, NetworkEngine, NetworkPrecision, Scales, parse_scales
from exfuse.console import progress_bar, terminal
from exfuse.evaluation.submission import voc_test_images, write_voc_submission
from exfuse.export.open import reference_engine
from exfuse.inference.tta import TestTimeAugmentation
from exfuse.outputs.file import check_file
from exfuse.predictor import Predictor


class Server(StrEnum):
    """Supported evaluation servers."""

    VOC = "voc"


def submit_command(
    server: Annotated[Server, typer.Argument(help="The evaluation server.")],
    model: Model,
    data: Annotated[Path, typer.Argument(help="The folder VOC2012 with the test images.")],
    split: Annotated[str, typer.Option(help="The split to predict.")] = "test",
    scales: Scales = "1",
    flip: Flip = False,
    engine: NetworkEngine = None,
    precision: NetworkPrecision = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to write.")] = Path("results.tgz"),
) -> None:
    """Predict a test set, write the archive for its evaluation server and check it."""
    console = terminal()
    check_file(output, "exfuse submit")
    images = voc_test_images(data, split)
    predictor = Predictor.from_pretrained(
        model, reference_engine(model, engine), precision, TestTimeAugmentation(parse_scales(scales), flip)
    )
    with progress_bar(console) as bar:
        task = bar.add_task("predicting", total=len(images))
        written = write_voc_submission(predictor, images, split, output, lambda: bar.advance(task))
    console.print(f"{server.value}: {len(images)} masks, checked: {written}", soft_wrap=True)
