"""`exfuse data prepare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from exfuse.console import progress_bar, terminal
from exfuse.data.prepare.coco import prepare_coco
from exfuse.data.prepare.voc import prepare_sbd, prepare_voc

app = typer.Typer(help="Prepare data sets for training.", no_args_is_help=True)


class Source(StrEnum):
    """Data sets that can be prepared, in the order of the paper's protocol."""

    VOC = "voc"
    SBD = "sbd"
    COCO = "coco"


@app.callback()
def data() -> None:
    """Prepare data sets for training."""


@app.command("prepare")
def prepare_command(
    source: Annotated[Source, typer.Argument(help="The data set: voc first, then sbd, then coco, in the same output.")],
    folder: Annotated[
        Path, typer.Argument(help="VOC2012; SBD's folder with img/ and cls/; COCO's with annotations/ and train2017/.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to create or extend.")],
    splits: Annotated[str, typer.Option(help="COCO splits to include, separated by commas.")] = "train2017,val2017",
    partial: Annotated[bool, typer.Option("--partial", help="Accept missing images and leave them out.")] = False,
) -> None:
    """Combine PASCAL VOC 2012, SBD and COCO in one folder with the paper's three training lists.

    voc writes the lists train and val, sbd adds trainaug, coco adds mixed. No val image is in a training list; this is
    checked by name and content, and the number found (0) is printed.
    """
    console = terminal()
    with progress_bar(console) as bar:
        task = bar.add_task(f"preparing {source.value}", total=None)

        def advance() -> None:
            bar.advance(task)

        if source is Source.VOC:
            counts = prepare_voc(folder, output, partial, advance)
        elif source is Source.SBD:
            counts = prepare_sbd(folder, output, partial, advance)
        else:
            chosen = tuple(split.strip() for split in splits.split(","))
            counts = prepare_coco(folder, output, chosen, partial, advance)
    for name, count in counts.items():
        console.print(f"{name:<24} {count:>8,}")
    console.print(f"in {output}", soft_wrap=True)
