"""`exfuse predict`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from exfuse.atomic_io import read_file
from exfuse.cli.options import FastestEngine, Flip, Model, NetworkPrecision, Scales, parse_scales
from exfuse.console import progress_bar, terminal
from exfuse.data.find_images import find_images
from exfuse.data.samples import MAX_PIXELS, UInt8Array, read_image
from exfuse.errors import ConfigError, DataError, OutputError, brief
from exfuse.inference.tiling import Tiling
from exfuse.inference.tta import TestTimeAugmentation
from exfuse.outputs.folder import OutputFolder, claim_folder
from exfuse.predictor import Predictor, predict_large

FRACTIONS_FILE = "fractions.json"


def predict_command(
    model: Model,
    paths: Annotated[list[str], typer.Argument(help="Images, folders of images, or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks, overlays and fractions.json.")],
    scales: Scales = "1",
    flip: Flip = False,
    engine: FastestEngine = "auto",
    precision: NetworkPrecision = None,
    tile: Annotated[
        int | None, typer.Option(min=64, help="Split larger images into tiles of this side, which bounds the memory.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Overlap of neighbouring tiles in pixels.  [default: 192, or a quarter of a tile]"),
    ] = None,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = MAX_PIXELS // 10**6,
) -> None:
    """Segment images: palette PNG masks, overlays with a legend, and the fraction of pixels of each class as JSON.

    Invalid files are reported and skipped; the exit code is then 1. In tiles, the overlay is a small preview.
    """
    console, errors = terminal(), terminal(stderr=True)
    tiling, augmentation = choose_tiling(tile, overlap), TestTimeAugmentation(parse_scales(scales), flip)
    with claim_folder(output, "exfuse predict") as folder:
        rows = read_rows(folder)
        # Not taken from the rows, which are not written if the process is killed.
        taken = {name_of(mask): Path(path) for mask, path in folder.sources.items() if (output / mask).is_file()}
        images = find_images(paths, output, taken, lambda text: console.print(text, soft_wrap=True))
        for name in images:
            folder.check(mask_name(name))
            folder.check(overlay_name(name))
        with console.status("opening the model; on first use, the engine converts it"):
            predictor = Predictor.from_pretrained(model, engine, precision, augmentation)
        segmented = broken = 0
        try:
            with progress_bar(console) as bar:
                for name, path in bar.track(images.items(), description="predicting"):
                    try:
                        pixels = read_image(path, max_megapixels * 10**6)
                    except DataError as error:
                        errors.print(f"skipped: {error}", style="red", soft_wrap=True)
                        broken += 1
                        continue
                    folder.note_source(mask_name(name), str(path.absolute()))
                    fractions = segment(predictor, pixels, tiling, folder, name)
                    rows[name] = {"image": str(path.absolute()), "mask": mask_name(name), "fractions": fractions}
                    segmented += 1
        finally:  # also after Ctrl-C, for the masks written so far
            content = json.dumps([rows[name] for name in sorted(rows)], indent=2, allow_nan=False) + "\n"
            folder.write(FRACTIONS_FILE, content.encode())
    engine_used = f"engine {predictor.engine.name}, {predictor.engine.precision}"
    console.print(f"{segmented} images segmented, {broken} skipped: {output} ({engine_used})", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def segment(
    predictor: Predictor, pixels: UInt8Array, tiling: Tiling | None, folder: OutputFolder, name: str
) -> dict[str, float]:
    """Writes the mask and the overlay of an image; returns the fraction of its pixels for each class."""
    if tiling is not None and max(pixels.shape) > tiling.tile_size:
        with folder.open(mask_name(name)) as file:
            large = predict_large(predictor, pixels, tiling, file)
        folder.save(overlay_name(name), large.preview.overlay(), quality=92)
        return large.fractions
    prediction = predictor(pixels)
    folder.save(mask_name(name), prediction.mask())
    folder.save(overlay_name(name), prediction.overlay(), quality=92)
    return prediction.class_fractions()


def mask_name(name: str) -> str:
    """Returns the path of an image's mask within the output folder."""
    return f"masks/{name}.png"


def name_of(mask: str) -> str:
    """Returns the name of an image from the path of its mask within the output folder."""
    return mask.removeprefix("masks/").removesuffix(".png")


def overlay_name(name: str) -> str:
    """Returns the path of an image's overlay within the output folder."""
    return f"overlays/{name}.jpg"


def choose_tiling(tile: int | None, overlap: int | None) -> Tiling | None:
    """Returns the tiling, or None without `tile`.

    Raises:
        ConfigError: If tile size and overlap are incompatible.
    """
    if tile is None:
        if overlap is not None:
            raise ConfigError(f"--overlap {overlap}: has no effect without --tile; add --tile or leave it out")
        return None
    tiling = Tiling(tile, min(Tiling().overlap, tile // 4) if overlap is None else overlap)
    tiling.check()
    return tiling


def read_rows(folder: OutputFolder) -> dict[str, dict[str, Any]]:
    """Returns the entries of an existing `fractions.json` whose masks still exist, by image name.

    Raises:
        OutputError: If the file was not written by `exfuse predict`.
    """
    path = folder.folder / FRACTIONS_FILE
    folder.check(FRACTIONS_FILE)
    if not path.exists():
        return {}
    try:
        rows = [row for row in json.loads(read_file(path)) if (folder.folder / row["mask"]).is_file()]
        return {name_of(row["mask"]): row for row in rows}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise OutputError(
            f"{path}: not a file written by exfuse predict ({brief(error)}); choose another output"
        ) from error
