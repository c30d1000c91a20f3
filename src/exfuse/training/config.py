"""The types of a recipe: every key with its default, its range and a one-line explanation.

Every number has limits, far outside its useful range, so that no single number causes an overflow or fills the memory.
`exfuse recipes NAME --full` and docs/options.md print the explanations.
"""

import unicodedata
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from exfuse.errors import brief, did_you_mean
from exfuse.losses import CLASS_WEIGHTS, LOSSES
from exfuse.models.options import ModelOptions, check_option, family_defaults, option_limit, option_text, option_types
from exfuse.models.semantic_supervision import HEAD_HIDDEN_WIDTH

PathOrText = TypeVar("PathOrText", str, Path)

RECIPE_VERSION = 2  # increase when a key is renamed or changes its meaning; see `exfuse.training.recipes`
MAX_NAME = 4096  # characters, the maximum for a path


def _checked_name(name: PathOrText) -> PathOrText:
    """Returns a name after checking that it is valid for a file and printable in a terminal."""
    text = str(name)
    if len(text) > MAX_NAME:
        raise ValueError(f"{len(text):,} characters; at most {MAX_NAME:,} are allowed")
    if bad := next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None):
        raise ValueError(f"the character {bad!a} is not allowed in a name")
    return name


Text = Annotated[str, AfterValidator(_checked_name)]
FilePath = Annotated[Path, AfterValidator(_checked_name)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Scale = Annotated[float, Field(ge=0.01, le=100)]
Deviation = Annotated[float, Field(ge=0.001, le=10)]
Area = Annotated[float, Field(gt=0, le=1)]
CropSide = Annotated[int, Field(ge=64, le=8192, multiple_of=32)]


def _key(default: Any, text: str, **limits: Any) -> Any:
    """Returns a recipe key: its default, its one-line explanation and, for a number, its limits."""
    return Field(default=default, description=text, **limits)


def _section(kind: type[BaseModel]) -> Any:
    return Field(default_factory=kind, description="")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class InputConfig(_Section):
    """The images of a run and how they are augmented."""

    root: FilePath | None = _key(None, "the data set: a folder or a dataset file; required")
    train_split: Text = _key("train", "split to train on")
    val_split: Text = _key("val", "split to evaluate on")
    crop_size: tuple[CropSide, CropSide] = _key((320, 320), "height and width of a training crop, multiples of 32")
    flip: Fraction = _key(0.5, "probability of a horizontal flip")
    brightness: Fraction = _key(0.3, "largest random change of brightness, 0 to 1")
    contrast: Fraction = _key(0.3, "largest random change of contrast, 0 to 1")
    saturation: Fraction = _key(0.3, "largest random change of saturation, 0 to 1")
    image_mean: tuple[Fraction, Fraction, Fraction] = _key(
        (0.485, 0.456, 0.406), "RGB mean to subtract from images on the scale 0 to 1; ImageNet's by default"
    )
    image_std: tuple[Deviation, Deviation, Deviation] = _key(
        (0.229, 0.224, 0.225), "RGB standard deviation to divide by, on the same scale; ImageNet's by default"
    )
    workers: int = _key(0, "processes that load images; 0 loads in the training process", ge=0, le=64)


class DataConfig(InputConfig):
    """Images with masks."""

    scale: tuple[Scale, Scale] = _key((0.5, 2.0), "range of the random scale")
    cache: bool = _key(False, "cache decoded training images in the user's cache folder")

    @model_validator(mode="after")
    def _ordered(self) -> "DataConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"the scale range {list(self.scale)} is empty; put the smaller number first")
        return self


class ClassificationDataConfig(InputConfig):
    """Images in one folder per class."""

    crop_size: tuple[CropSide, CropSide] = _key((224, 224), "height and width of a crop, multiples of 32")
    area: tuple[Area, Area] = _key((0.08, 1.0), "range of the random fraction of an image's area that a crop covers")
    resize: int = _key(256, "shorter side of an image in evaluation, before its central crop", ge=32, le=16384)

    @model_validator(mode="after")
    def _ordered(self) -> "ClassificationDataConfig":
        if self.area[0] > self.area[1]:
            raise ValueError(f"the area range {list(self.area)} is empty; put the smaller number first")
        if self.resize < max(self.crop_size):
            raise ValueError(f"resize {self.resize} is smaller than the crop {list(self.crop_size)}")
        return self


class _NamedModel(_Section):
    name: Text = _key("exfuse_resnet18", "one of `exfuse models`, or exfuse_timm/NAME")


def _option_key(option: str, default: Any, annotation: Any) -> Any:
    def checked(value: int) -> int:
        check_option(option, value)
        return value

    number = Annotated[int, Field(ge=1, le=option_limit(option)), AfterValidator(checked)]
    is_optional = annotation == int | None
    if annotation is int or is_optional:
        annotation = number | None if is_optional else number
    elif int in getattr(annotation, "__args__", ()):
        annotation = Literal["narrow", "wide"] | number
    return annotation, _key(default, option_text(option))


_Switches: Any = create_model(
    "_Switches",
    __base__=_NamedModel,
    **{key.name: _option_key(key.name, key.default, option_types()[key.name]) for key in fields(ModelOptions)},
)


class ModelConfig(_Switches):  # type: ignore[misc]
    """The network: a name, the options of `exfuse.models.options.ModelOptions`, and initial weights.

    A missing option has the default of the model's family, and so has null for an option that the family sets.
    """

    backbone_weights: FilePath | None = _key(
        None, "backbone to start from: a folder of `exfuse pretrain`, or a .safetensors file of torchvision or timm"
    )
    weights: FilePath | None = _key(None, "model folder to start from, with the same architecture and classes")

    @model_validator(mode="before")
    @classmethod
    def _with_family_defaults(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        defaults = family_defaults(str(content.get("name", cls.model_fields["name"].default)))
        return defaults | {key: value for key, value in content.items() if value is not None or key not in defaults}

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError("weights and backbone_weights are both set; a network can start from only one of them")
        return self

    @property
    def options(self) -> ModelOptions:
        """The switches of the network."""
        return ModelOptions(**{key.name: getattr(self, key.name) for key in fields(ModelOptions)})


def _known_class_weights(name: str) -> str:
    known = ["none", *CLASS_WEIGHTS]
    if name not in known:
        raise ValueError(f"{brief(name, 60)!r} is no kind of class weights; {did_you_mean(brief(name, 60), known)}")
    return name


_WEIGHTS: dict[str, Any] = {name: (Weight, _key(0.0, f"weight of the loss {name}; 0 disables it")) for name in LOSSES}
_Terms: Any = create_model("_Terms", __base__=_Section, **_WEIGHTS)


class LossConfig(_Terms):  # type: ignore[misc]
    """The weighted sum of losses that is minimised; see `exfuse.losses.SegmentationLoss`.

    Each loss registered from outside the package is one more key, whose value is its weight.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Weight]

    class_weights: Annotated[str, AfterValidator(_known_class_weights)] = _key(
        "none", f"class weights from the class frequencies in training: none, {', '.join(CLASS_WEIGHTS)}"
    )
    ohem: bool = _key(False, "online hard example mining: cross-entropy of only the hardest pixels")
    auxiliary: Weight = _key(0.4, "weight of the auxiliary prediction's loss")

    @model_validator(mode="before")
    @classmethod
    def _known_terms(cls, content: Any) -> Any:
        if isinstance(content, dict):
            known = [*cls.model_fields, *LOSSES]
            for key in content:
                if key not in known:
                    raise ValueError(f"unknown key {brief(key, 60)!r}; {did_you_mean(brief(key, 60), known)}")
        return content

    @property
    def terms(self) -> dict[str, float]:
        """The weight of each additional loss, by name."""
        return {name: getattr(self, name, 0.0) for name in LOSSES}


class OptimizerConfig(_Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "sgd", "muon"] = _key(
        "muon", "adamw, sgd, or muon for convolution kernels and adamw for the rest"
    )
    learning_rate: Rate = _key(0.002, "peak learning rate")
    backbone_lr_scale: Rate = _key(1.0, "factor on the learning rate for the backbone")
    weight_decay: Weight = _key(0.05, "weight decay; norms and biases have none")
    momentum: Fraction = _key(0.95, "momentum of sgd and muon")
    schedule: Literal["polynomial", "cosine"] = _key("polynomial", "learning rate decay: (1 - t)^0.9 or half a cosine")
    warmup_steps: int = _key(100, "steps of linear warm-up; at most half of the run", ge=0, le=10**9)
    clip_grad_norm: float = _key(5.0, "maximum norm of the gradient; 0 disables clipping", ge=0, le=10**9)


class ClassifierConfig(_Section):
    """The classifier to pre-train; see `exfuse.models.semantic_supervision`."""

    backbone: Text = _key("resnet18", "the backbone to pre-train")
    head_weights: tuple[Weight, Weight, Weight, Weight] = _key(
        (0.1, 0.2, 0.3, 0.4), "weights of the auxiliary losses on stages res-2 to res-5; 0 means no head"
    )
    head_hidden_width: int = _key(
        HEAD_HIDDEN_WIDTH, "outputs of the first of a head's two linear layers; 0 omits that layer", ge=0, le=16384
    )
    label_smoothing: Share = _key(0.1, "label smoothing of the cross-entropy")


class RunConfig(_Section):
    """Keys of every training run."""

    command: ClassVar[str]

    recipe_version: Literal[2] = _key(RECIPE_VERSION, "version of these keys")
    output: FilePath = _key(Path("runs/unnamed"), "run folder; by default runs/ and the recipe's name")
    seed: int = _key(0, "seed of weights, sample order and augmentation", ge=0, le=2**32 - 1)
    epochs: Count = _key(60, "passes over the training split")
    batch_size: int = _key(8, "samples per optimizer step, over all processes", ge=1, le=65536)
    gradient_accumulation: int = _key(
        1, "pieces of a batch, one forward pass each; pieces are weighted by their labelled pixels", ge=1, le=65536
    )
    precision: Literal["fp32", "bf16"] = _key("bf16", "precision of the forward pass; weights are always fp32")
    channels_last: bool = _key(True, "channels-last memory layout, faster on most processors")
    ema_decay: Share = _key(0.998, "decay of the moving average of the weights; 0 disables it")
    evaluate_every: Count = _key(5, "epochs between evaluations")
    checkpoint_every: Count = _key(500, "steps between checkpoints")
    log_every: Count = _key(20, "steps between records of the loss")
    max_skipped_steps: int = _key(
        0, "consecutive steps with a non-finite loss or gradient that may be skipped; 0 stops the run", ge=0, le=10
    )
    data: InputConfig
    optimizer: OptimizerConfig = _section(OptimizerConfig)

    @model_validator(mode="after")
    def _divisible(self) -> "RunConfig":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation {self.gradient_accumulation}"
            )
        return self


class SegmentationConfig(RunConfig):
    """Keys of every run that trains a segmentation network."""

    data: DataConfig = _section(DataConfig)
    model: ModelConfig = _section(ModelConfig)
    loss: LossConfig = _section(LossConfig)


class TrainingConfig(SegmentationConfig):
    """A run of `exfuse train`."""

    command = "exfuse train"

    task: Literal["segmentation"] = _key("segmentation", "the command that the recipe is for: exfuse train")


class PretrainingConfig(RunConfig):
    """A run of `exfuse pretrain`."""

    command = "exfuse pretrain"

    task: Literal["classification"] = _key("classification", "the command that the recipe is for: exfuse pretrain")
    data: ClassificationDataConfig = _section(ClassificationDataConfig)
    model: ClassifierConfig = _section(ClassifierConfig)


class PretrainedConfig(_Section):
    """Folders of `exfuse pretrain` from which the rows of an ablation start; without them, weights are random."""

    plain: FilePath | None = _key(None, "the backbone, pre-trained without auxiliary heads")
    supervised: FilePath | None = _key(None, "the backbone, pre-trained with auxiliary heads")
    rearranged: FilePath | None = _key(None, "the rearranged backbone, pre-trained without auxiliary heads")
    rearranged_supervised: FilePath | None = _key(None, "the rearranged backbone, pre-trained with auxiliary heads")


class AblationConfig(SegmentationConfig):
    """The runs of `exfuse ablate`: the recipe common to all rows."""

    command = "exfuse ablate"

    task: Literal["ablation"] = _key("ablation", "the command that the recipe is for: exfuse ablate")
    seeds: int = _key(3, "runs per row", ge=1, le=1000)
    pretrained: PretrainedConfig = _section(PretrainedConfig)

    @model_validator(mode="after")
    def _without_row_keys(self) -> "AblationConfig":
        defaults = ModelConfig(name=self.model.name)
        for key in ROWS_DECIDE:
            if getattr(self.model, key) != getattr(defaults, key):
                hint = " and set pretrained.plain instead" if key.endswith("weights") else ""
                raise ValueError(f"model.{key} is set by each row of the ablation; leave it out{hint}")
        return self


ROWS_DECIDE = (
    "semantic_embedding", "semantic_embedding_width", "channel_resolution_embedding", "auxiliary_prediction",
    "dap_window", "backbone_weights", "weights", "dap_control_conv", "supervised_features", "decoder_width",
)  # fmt: skip
