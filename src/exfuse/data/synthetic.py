"""Drawn scenes of textured, overlapping shapes: a seeded segmentation task that needs no download.

Shape and texture determine the class; colour is random. Discs and striped discs differ in texture only, rods are two to
four pixels wide, later shapes cover earlier ones, and a one-pixel border around each shape is ignored, as in PASCAL
VOC.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from exfuse.data.classes import Classes, voc_palette
from exfuse.data.samples import Sample, UInt8Array

SCENE_CLASSES = Classes(("ground", "disc", "striped_disc", "box", "triangle", "ring", "rod"), voc_palette(7))

FloatArray = npt.NDArray[np.float32]


def make_scene(seed: int, height: int = 144, width: int = 192) -> Sample:
    """Draws a scene.

    Args:
        seed: Determines the scene.
        height: In pixels.
        width: In pixels.
    """
    rng = np.random.default_rng(seed)
    image = _texture(rng, height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(7, 13)):
        label = int(rng.integers(1, len(SCENE_CLASSES)))
        shape = _draw_shape(label, rng, height, width)
        texture = _stripes(rng, height, width) if label == 2 else _texture(rng, height, width)
        image[shape > 0] = texture[shape > 0]
        border = cv2.dilate(shape, np.ones((3, 3), dtype=np.uint8)) > shape
        mask[border] = SCENE_CLASSES.ignore_index
        mask[shape > 0] = label
    noisy = cv2.GaussianBlur(image, (0, 0), sigmaX=0.8) + rng.normal(0, 10, image.shape)
    return Sample(np.clip(noisy, 0, 255).astype(np.uint8), mask)


def write_scenes(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Writes a data set of scenes in the format images/, masks/, SPLIT.txt, classes.json.

    Args:
        root: Folder to write to.
        counts: Split name -> number of scenes; no scene is in two splits.
        seed: Determines all scenes.
    """
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    palette = [value for color in SCENE_CLASSES.palette for value in color]
    first = seed * 1_000_000
    for split, count in counts.items():
        names = [f"{split}_{index:04d}" for index in range(count)]
        for index, name in enumerate(names):
            scene = make_scene(first + index)
            Image.fromarray(scene.image).save(root / "images" / f"{name}.jpg", quality=92)
            mask = Image.fromarray(scene.mask).convert("P")
            mask.putpalette(palette + [255] * (768 - len(palette)))
            mask.save(root / "masks" / f"{name}.png")
        (root / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        first += count
    rows = zip(SCENE_CLASSES.names, SCENE_CLASSES.palette, strict=True)
    classes = [{"id": index, "name": name, "color": color} for index, (name, color) in enumerate(rows)]
    description = {"classes": classes, "ignore_index": SCENE_CLASSES.ignore_index}
    (root / "classes.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def _texture(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    """Returns a random colour with smooth blotches, `(H, W, 3)`."""
    coarse = rng.normal(0, 28, (height // 12 + 2, width // 12 + 2, 1)).astype(np.float32)
    blotches = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    color = rng.uniform(40, 215, 3).astype(np.float32)
    return np.asarray(color + blotches[..., None], dtype=np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int) -> FloatArray:
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 9)
    y, x = np.mgrid[:height, :width]
    wave = np.sign(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period))
    stripes = rng.uniform(14, 30) * wave[..., None]
    return np.asarray(_texture(rng, height, width) + stripes, dtype=np.float32)


def _draw_shape(label: int, rng: np.random.Generator, height: int, width: int) -> UInt8Array:
    """Returns a random shape of a class, as ones on zeros, `(H, W)`."""
    canvas = np.zeros((height, width), dtype=np.uint8)
    center = np.array([rng.uniform(0, width), rng.uniform(0, height)])
    radius, angle = rng.uniform(9, 28), rng.uniform(0, 2 * np.pi)
    whole = (int(center[0]), int(center[1]))
    name = SCENE_CLASSES.names[label]
    if name in ("disc", "striped_disc"):
        cv2.circle(canvas, whole, int(radius), 1, thickness=-1)
    elif name == "ring":
        cv2.circle(canvas, whole, int(radius), 1, thickness=int(rng.integers(3, 6)))
    elif name == "rod":
        reach = np.array([np.cos(angle), np.sin(angle)]) * radius * 2
        start, end = (center - reach).astype(int), (center + reach).astype(int)
        cv2.line(canvas, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 1, int(rng.integers(2, 5)))
    else:
        corners = 4 if name == "box" else 3
        turns = angle + np.arange(corners) * 2 * np.pi / corners
        points = center + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        cv2.fillPoly(canvas, [points.astype(np.int32)], (1,))
    return canvas
