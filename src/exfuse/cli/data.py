"""`exfuse data prepare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from exfuse.console import progress_bar, terminal
from exfuse.data.prepare.coco import prepare_coco
from exfuse.data.prepare.voc import prepare_sbd, prepare_voc

app = typer.Typer(help="Make data sets ready for training.", no_args_is_help=True)


class Source(StrEnum):
    """What can be prepared, in the order of the paper's protocol."""

    VOC = "voc"
    SBD = "sbd"
    COCO = "coco"


@app.callback()
def data() -> None:
    """Make data sets ready for training."""


@app.command("prepare")
def prepare_command(
    source: Annotated[Source, typer.Argument(help="voc first, then sbd, then coco; all into one folder.")],
    folder: Annotated[
        Path, typer.Argument(help="VOC2012; SBD's folder with img/ and cls/; COCO's with annotations/ and train2017/.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make or to add to.")],
    splits: Annotated[str, typer.Option(help="COCO's splits to take, separated by commas.")] = "train2017,val2017",
    partial: Annotated[bool, typer.Option("--partial", help="Take what is there though images are missing.")] = False,
) -> None:
    """Turn PASCAL VOC 2012, SBD and COCO into one folder with the paper's three training lists.

    voc makes the lists train and val, sbd adds trainaug, coco adds mixed. No val image is ever in a training list:
    that is checked by name and by content, and said.
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
    for what, count in counts.items():
        console.print(f"{what:<24} {count:>8,}")
    console.print(f"in {output}", soft_wrap=True)
