"""The closed types that a recipe is read into: every key with its default, its range and one line of explanation.

Every number has limits, far outside of what makes sense, so that none of them overflows or fills the memory by itself.
The explanations are what `exfuse recipes NAME --full` and docs/options.md print.
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

RECIPE_VERSION = 2  # to be raised when a key gets another name or meaning; see `exfuse.training.recipes`
MAX_NAME = 4096  # characters, as many as a path may have


def _checked_name(name: PathOrText) -> PathOrText:
    """Returns a name that a file can have and a terminal can show."""
    text = str(name)
    if len(text) > MAX_NAME:
        raise ValueError(f"{len(text):,} characters, and {MAX_NAME:,} are allowed")
    if bad := next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None):
        raise ValueError(f"the character {bad!a} cannot be part of a name")
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
    """Returns a key of a recipe: its default, its explanation in one line, and the limits of a number."""
    return Field(default=default, description=text, **limits)


def _section(kind: type[BaseModel]) -> Any:
    return Field(default_factory=kind, description="")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class InputConfig(_Section):
    """The images of a run and how they are augmented."""

    root: FilePath | None = _key(None, "the data set: a folder or a dataset file; must be given")
    train_split: Text = _key("train", "split to train on")
    val_split: Text = _key("val", "split to measure on")
    crop_size: tuple[CropSide, CropSide] = _key((320, 320), "height and width of a training crop, multiples of 32")
    flip: Fraction = _key(0.5, "probability of a horizontal flip")
    brightness: Fraction = _key(0.3, "largest random change of brightness, 0 to 1")
    contrast: Fraction = _key(0.3, "largest random change of contrast, 0 to 1")
    saturation: Fraction = _key(0.3, "largest random change of saturation, 0 to 1")
    image_mean: tuple[Fraction, Fraction, Fraction] = _key(
        (0.485, 0.456, 0.406), "RGB mean that is subtracted, of images from 0 to 1; ImageNet's by default"
    )
    image_std: tuple[Deviation, Deviation, Deviation] = _key(
        (0.229, 0.224, 0.225), "RGB standard deviation by which is divided; ImageNet's by default"
    )
    workers: int = _key(0, "processes that read images; 0 reads in the training process", ge=0, le=64)


class DataConfig(InputConfig):
    """Images with masks."""

    scale: tuple[Scale, Scale] = _key((0.5, 2.0), "range of the random scale")
    cache: bool = _key(False, "keep decoded training images in the user's cache")

    @model_validator(mode="after")
    def _ordered(self) -> "DataConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"the scale range {list(self.scale)} is empty")
        return self


class ClassificationDataConfig(InputConfig):
    """Images in one folder a class."""

    crop_size: tuple[CropSide, CropSide] = _key((224, 224), "height and width of a crop, multiples of 32")
    area: tuple[Area, Area] = _key((0.08, 1.0), "range of the random fraction of an image that a training crop shows")
    resize: int = _key(256, "length of the shorter side for scoring, from whose middle a crop is cut", ge=32, le=16384)

    @model_validator(mode="after")
    def _ordered(self) -> "ClassificationDataConfig":
        if self.area[0] > self.area[1]:
            raise ValueError(f"the area range {list(self.area)} is empty")
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
    """The network: a name, the options of `exfuse.models.options.ModelOptions`, and what it starts from.

    An option that is left out or null is as the model's name says.
    """

    backbone_weights: FilePath | None = _key(
        None, "a folder of `exfuse pretrain`, or a .safetensors file in torchvision's or timm's naming"
    )
    weights: FilePath | None = _key(None, "a model folder to start from, of the same architecture and classes")

    @model_validator(mode="before")
    @classmethod
    def _as_named(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        usual = family_defaults(str(content.get("name", cls.model_fields["name"].default)))
        return usual | {key: value for key, value in content.items() if value is not None or key not in usual}

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError("weights and backbone_weights are both set; a network can begin with one of them")
        return self

    @property
    def options(self) -> ModelOptions:
        """The switches of the network."""
        return ModelOptions(**{key.name: getattr(self, key.name) for key in fields(ModelOptions)})


def _known_class_weights(name: str) -> str:
    if name != "none" and name not in CLASS_WEIGHTS:
        raise ValueError(
            f"there are no class weights {brief(name, 60)!r}; {did_you_mean(brief(name, 60), ['none', *CLASS_WEIGHTS])}"
        )
    return name


_WEIGHTS: dict[str, Any] = {name: (Weight, _key(0.0, f"weight of the loss {name}; 0 is without")) for name in LOSSES}
_Terms: Any = create_model("_Terms", __base__=_Section, **_WEIGHTS)


class LossConfig(_Terms):  # type: ignore[misc]
    """The weighted sum that is minimised; see `exfuse.losses.SegmentationLoss`.

    A loss that was registered by others is a further key, with its weight.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Weight]

    class_weights: Annotated[str, AfterValidator(_known_class_weights)] = _key(
        "none", f"weights of the classes by how often each occurs in training: none, {', '.join(CLASS_WEIGHTS)}"
    )
    ohem: bool = _key(False, "online hard example mining: the cross entropy of the hardest pixels alone")
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
        """The weight of each further loss."""
        return {name: getattr(self, name, 0.0) for name in LOSSES}


class OptimizerConfig(_Section):
    """How the loss is minimised."""

    name: Literal["adamw", "sgd", "muon"] = _key("muon", "muon (with AdamW for what is no matrix), adamw or sgd")
    learning_rate: Rate = _key(0.002, "peak learning rate")
    backbone_lr_scale: Rate = _key(1.0, "the backbone's learning rate as a multiple of it")
    weight_decay: Weight = _key(0.05, "weight decay; norms and biases have none")
    momentum: Fraction = _key(0.95, "momentum of sgd and muon")
    schedule: Literal["polynomial", "cosine"] = _key("polynomial", "how the rate falls: (1 - t)^0.9 or half a cosine")
    warmup_steps: int = _key(100, "steps over which the rate rises; at most half of the run's", ge=0, le=10**9)
    clip_grad_norm: float = _key(5.0, "largest norm of the gradient; 0 is without a limit", ge=0, le=10**9)


class ClassifierConfig(_Section):
    """The classifier that is pre-trained; see `exfuse.models.semantic_supervision`."""

    backbone: Text = _key("resnet18", "the backbone to pre-train")
    head_weights: tuple[Weight, Weight, Weight, Weight] = _key(
        (0.1, 0.2, 0.3, 0.4), "weights of the auxiliary losses on stages res-2 to res-5; 0 is without a head"
    )
    head_hidden_width: int = _key(
        HEAD_HIDDEN_WIDTH, "outputs of the first of a head's two linear layers; 0 leaves that layer out", ge=0, le=16384
    )
    label_smoothing: Share = _key(0.1, "label smoothing of the cross entropy")


class RunConfig(_Section):
    """What every training run has."""

    command: ClassVar[str]

    recipe_version: Literal[2] = _key(RECIPE_VERSION, "version of these keys")
    output: FilePath = _key(Path("runs/unnamed"), "folder of the run; runs/ and the recipe's name by default")
    seed: int = _key(0, "of weights, sample order and augmentation", ge=0, le=2**32 - 1)
    epochs: Count = _key(60, "passes over the training split")
    batch_size: int = _key(8, "samples of one optimizer step, over all processes", ge=1, le=65536)
    gradient_accumulation: int = _key(
        1, "forward passes that a batch is cut into; pieces count by their labelled pixels", ge=1, le=65536
    )
    precision: Literal["fp32", "bf16"] = _key("bf16", "of the forward pass; weights are always fp32")
    channels_last: bool = _key(True, "memory layout of the network, faster on most processors")
    ema_decay: Share = _key(0.998, "decay of the moving average of the weights; 0 is without")
    evaluate_every: Count = _key(5, "epochs between two evaluations")
    checkpoint_every: Count = _key(500, "steps between two checkpoints")
    log_every: Count = _key(20, "steps between two records of the loss")
    max_skipped_steps: int = _key(
        0, "steps in a row that may be left out as their loss or gradient is not finite; 0 stops the run", ge=0, le=10
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
    """What every run has that trains a segmentation network."""

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
    """Folders of `exfuse pretrain` that the rows of an ablation start from; without them they start at random."""

    plain: FilePath | None = _key(None, "the backbone, without auxiliary heads")
    supervised: FilePath | None = _key(None, "the backbone, with auxiliary heads")
    rearranged: FilePath | None = _key(None, "the rearranged backbone, without auxiliary heads")
    rearranged_supervised: FilePath | None = _key(None, "the rearranged backbone, with auxiliary heads")


class AblationConfig(SegmentationConfig):
    """Runs of `exfuse ablate`: the recipe that all rows share."""

    command = "exfuse ablate"

    task: Literal["ablation"] = _key("ablation", "the command that the recipe is for: exfuse ablate")
    seeds: int = _key(3, "runs of each row", ge=1, le=1000)
    pretrained: PretrainedConfig = _section(PretrainedConfig)

    @model_validator(mode="after")
    def _rows_decide(self) -> "AblationConfig":
        usual = ModelConfig(name=self.model.name)
        for key in ROWS_DECIDE:
            if getattr(self.model, key) != getattr(usual, key):
                hint = "; use pretrained.plain" if key.endswith("weights") else ""
                raise ValueError(f"model.{key} is decided by each row of the ablation; leave it out{hint}")
        return self


ROWS_DECIDE = (
    "semantic_embedding", "semantic_embedding_width", "channel_resolution_embedding", "auxiliary_prediction",
    "dap_window", "backbone_weights", "weights", "dap_control_conv", "supervised_features", "decoder_width",
)  # fmt: skip
