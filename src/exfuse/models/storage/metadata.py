"""Metadata of a saved model."""

from dataclasses import asdict, dataclass, field
from operator import index as index_of
from typing import TYPE_CHECKING, Any

from exfuse.data.classes import Classes
from exfuse.errors import DataError
from exfuse.models.options import ModelOptions, options_of

if TYPE_CHECKING:
    from exfuse.data.datasets import SegmentationDataset

# Earlier defaults of options, for metadata that was written before all options were listed in it.
WITHOUT_OPTION = {"decoder_width": "wide"}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a saved model: architecture, classes, palette, normalisation, scores.

    Attributes:
        name: The model's name, as for `create_model`.
        options: The switches it was built with.
        class_names: One name per class.
        palette: One RGB colour (0 to 255) per class.
        ignore_index: The label that training ignored.
        image_mean: RGB mean of the training images, 0 to 1, subtracted from the input.
        image_std: RGB standard deviation on the same scale, by which the input is then divided.
        metrics: Scores and their protocol; any JSON.
    """

    name: str
    options: ModelOptions
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return {
            "model_type": "exfuse",
            "architecture": {"name": self.name, "num_classes": len(self.class_names), **asdict(self.options)},
            "id2label": {str(index): name for index, name in enumerate(self.class_names)},
            "palette": [list(color) for color in self.palette],
            "ignore_index": self.ignore_index,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "input": {"channels": "RGB", "range": [0, 1], "resize": None},
            "metrics": self.metrics,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelMetadata":
        """Reads the content of `config.json`.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry has the wrong type.
            ValueError: If an entry has an invalid value.
        """
        architecture = dict(content["architecture"])
        name, num_classes = str(architecture.pop("name")), int(architecture.pop("num_classes"))
        labels = content["id2label"]
        if len(labels) != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but id2label has {len(labels)} names")
        names = tuple(str(labels[str(index)]) for index in range(num_classes))
        palette = tuple((index_of(r), index_of(g), index_of(b)) for r, g, b in content["palette"])
        try:
            classes = Classes(names, palette, index_of(content["ignore_index"]))
        except DataError as error:
            raise ValueError(str(error)) from error
        mean, std = _three_floats(content["image_mean"]), _three_floats(content["image_std"])
        if not (all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)):
            raise ValueError(
                f"image_mean {mean} and image_std {std} must be on the scale 0 to 1; divide values on the scale 0 to "
                "255 by 255"
            )
        return cls(
            name=name,
            options=options_of(name, WITHOUT_OPTION | architecture),
            class_names=classes.names,
            palette=classes.palette,
            ignore_index=classes.ignore_index,
            image_mean=mean,
            image_std=std,
            metrics=dict(content.get("metrics", {})),
        )


def check_classes(info: ModelMetadata, dataset: "SegmentationDataset") -> None:
    """Checks that the model and the data set have the same classes in the same order.

    Raises:
        DataError: If their class names differ.
    """
    model_names, data_names = info.class_names, dataset.classes.names
    if model_names == data_names:
        return
    if len(model_names) != len(data_names):
        in_data, in_model = (f"{len(names)} classes ({', '.join(names)})" for names in (data_names, model_names))
        raise DataError(f"{dataset.root}: {in_data}, but the model has {in_model}")
    index = next(i for i, pair in enumerate(zip(model_names, data_names, strict=True)) if pair[0] != pair[1])
    raise DataError(
        f"{dataset.root}: class {index} is {data_names[index]!r}, but the model's is {model_names[index]!r}"
    )


def _three_floats(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
