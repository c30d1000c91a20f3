"""`exfuse predict`."""

import glob
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from exfuse.cli.options import FastestEngine, Flip, Model, NetworkPrecision, Scales, parse_scales
from exfuse.data.samples import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from exfuse.durable import replace_file
from exfuse.errors import ConfigError, DataError, brief
from exfuse.inference.augmentation import TestTimeAugmentation
from exfuse.inference.large import predict_large
from exfuse.inference.predictor import Predictor
from exfuse.inference.tiles import Tiling

SHARES_FILE = "fractions.json"


def predict_command(
    model: Model,
    paths: Annotated[list[str], typer.Argument(help="Images, folders of images, or globs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks, overlays and fractions.json.")],
    scales: Scales = "1",
    flip: Flip = False,
    engine: FastestEngine = "auto",
    precision: NetworkPrecision = None,
    tile: Annotated[
        int | None, typer.Option(min=64, help="Cut larger images into tiles of this side, which bounds the memory.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="How many pixels neighbouring tiles share.  [default: 192, or a quarter of a tile]"),
    ] = None,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = MAX_PIXELS // 10**6,
) -> None:
    """Segment images: palette PNG masks, overlays with a legend, and each class's share as JSON.

    Broken files are reported and skipped; the exit code is then 1. Of an image in tiles the overlay is small.
    """
    console, errors = Console(), Console(stderr=True)
    tiling = choose_tiling(tile, overlap)
    images, shares = find_images(paths), read_shares(output)
    augmentation = TestTimeAugmentation(parse_scales(scales), flip)
    with console.status("opening the model; an engine that sees it for the first time converts it"):
        predictor = Predictor.from_pretrained(model, engine, precision, augmentation)
    for folder in ("masks", "overlays"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    segmented = broken = 0
    try:
        for name, path in track(images.items(), description="predicting", console=console):
            try:
                pixels = read_image(path, max_megapixels * 10**6)
            except DataError as error:
                errors.print(f"skipped: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
                broken += 1
                continue
            mask, overlay = output / "masks" / f"{name}.png", output / "overlays" / f"{name}.jpg"
            shares.pop(name, None)
            for target in (mask, overlay):
                target.parent.mkdir(parents=True, exist_ok=True)
            if tiling is not None and max(pixels.shape) > tiling.tile:
                prediction, fractions = predict_large(predictor, pixels, tiling, mask)
            else:
                prediction = predictor(pixels)
                prediction.mask().save(mask)
                fractions = prediction.class_fractions()
            shares[name] = {"image": str(path), "mask": str(mask), "fractions": fractions}
            prediction.overlay().save(overlay, quality=92)
            segmented += 1
    finally:  # after Ctrl-C, too, the shares of the masks that are there
        replace_file(output / SHARES_FILE, json.dumps([shares[name] for name in sorted(shares)], indent=2) + "\n")
    how = f"engine {predictor.engine.name}, {predictor.engine.precision}"
    summary = f"{segmented} images segmented, {broken} skipped: {output} ({how})"
    console.print(summary, markup=False, highlight=False)
    if broken:
        raise typer.Exit(1)


def choose_tiling(tile: int | None, overlap: int | None) -> Tiling | None:
    """Returns how images are cut, if they are.

    Raises:
        ConfigError: If the numbers do not go together.
    """
    if tile is None:
        if overlap is not None:
            raise ConfigError("--overlap is of tiles, and there are none without --tile")
        return None
    tiling = Tiling(tile, min(Tiling().overlap, tile // 4) if overlap is None else overlap)
    tiling.check()
    return tiling


def read_shares(output: Path) -> dict[str, dict[str, Any]]:
    """Returns what an earlier call wrote of the masks that are still in the same folder, by the images' names.

    Raises:
        DataError: If the file is there and something else.
    """
    path, masks = output / SHARES_FILE, (output / "masks").absolute()
    if not path.exists():
        return {}
    try:
        rows = {Path(row["mask"]).absolute(): row for row in json.loads(path.read_text(encoding="utf-8"))}
        inside = {mask: row for mask, row in rows.items() if mask.is_relative_to(masks) and mask.is_file()}
        return {mask.relative_to(masks).with_suffix("").as_posix(): row for mask, row in inside.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: not what exfuse predict writes ({brief(error)}); choose another --output") from error


def find_images(paths: list[str]) -> dict[str, Path]:
    """Returns the images that the arguments mean, by the name their results get.

    A file's name is its own without the suffix; an image in a folder keeps its place below that folder. Where two
    would have the same name, the later one gets a number. Of a folder with `images` in it, such as a data set, only
    that part is taken.

    Args:
        paths: Files, folders and globs.

    Raises:
        DataError: If one of them matches nothing.
    """
    images: dict[str, Path] = {}
    for text in paths:
        found = _expand(text)
        if not found:
            raise DataError(f"{text}: no image found")
        for name, path in found:
            unique, number = name, 2
            while unique in images:
                unique, number = f"{name}_{number}", number + 1
            images[unique] = path
    return images


def _expand(text: str) -> list[tuple[str, Path]]:
    path = Path(text)
    if path.is_file():
        return [(path.stem, path)]
    if path.is_dir():
        root = path / "images" if (path / "images").is_dir() else path
        inside = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        return [(file.relative_to(root).with_suffix("").as_posix(), file) for file in inside]
    matches = (Path(match) for match in sorted(glob.glob(text, recursive=True)))
    return [(path.stem, path) for path in matches if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
