"""The closed types that a recipe is read into: every key of a training run, none with a default.

Every number has limits, far outside of what makes sense, so that none of them overflows or fills the memory by itself.
"""

import unicodedata
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from exfuse.models.builders import Parts

PathOrText = TypeVar("PathOrText", str, Path)

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
Channels = Annotated[int, Field(ge=1, le=4096)]
CropSide = Annotated[int, Field(ge=64, le=8192, multiple_of=32)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputConfig(_Section):
    """What is trained on, and how it is shown. `root` None in a recipe means the user must say it."""

    root: FilePath | None
    train_split: Text
    val_split: Text
    crop_size: tuple[CropSide, CropSide]
    flip: Fraction
    brightness: Fraction
    contrast: Fraction
    saturation: Fraction
    image_mean: tuple[Fraction, Fraction, Fraction]
    image_std: tuple[Deviation, Deviation, Deviation]
    workers: Annotated[int, Field(ge=0, le=64)]


class DataConfig(InputConfig):
    """Images with masks, a folder or a dataset file.

    `scale` is the range of the random scale; `cache` keeps decoded training images in the user's cache.
    """

    scale: tuple[Scale, Scale]
    cache: bool

    @model_validator(mode="after")
    def _ordered(self) -> "DataConfig":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"the scale range {list(self.scale)} is empty")
        return self


class ClassificationDataConfig(InputConfig):
    """Images in one folder a class.

    A training crop shows a random share of the image between the two of `area`; for scoring the shorter side is brought
    to `resize` and the middle is cut out.
    """

    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
    resize: Annotated[int, Field(ge=32, le=16384)]

    @model_validator(mode="after")
    def _ordered(self) -> "ClassificationDataConfig":
        if self.area[0] > self.area[1]:
            raise ValueError(f"the area range {list(self.area)} is empty")
        if self.resize < max(self.crop_size):
            raise ValueError(f"resize {self.resize} is smaller than the crop {list(self.crop_size)}")
        return self


class ModelConfig(_Section):
    """Which network: a name of `exfuse models`, and arguments of `ExFuse`; a part that is null is as the name says.

    `backbone_weights` is a folder that `exfuse pretrain` left, or a .safetensors file named as torchvision and timm do.
    `weights` is a model folder of `exfuse train` whose network, of the same architecture and classes, is trained on.
    """

    name: Text
    supervised_features: bool
    gcn_kernel: Annotated[int, Field(ge=1, le=255)]
    semantic_embedding: bool | None
    semantic_embedding_norm: bool
    semantic_embedding_width: Channels | None
    channel_resolution_embedding: bool | None
    auxiliary_prediction: bool | None
    dap_window: Literal[1, 3, 5] | None
    dap_control_conv: bool
    decoder: Literal["full", "stride4"]
    decoder_width: Literal["wide", "narrow"] | Channels
    backbone_weights: FilePath | None
    weights: FilePath | None

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError("weights and backbone_weights are both set; a network can begin with one of them")
        return self

    def parts(self) -> Parts:
        """Returns the keyword arguments that the recipe sets."""
        return cast(Parts, self.model_dump(exclude={"name", "backbone_weights", "weights"}, exclude_none=True))


class LossConfig(_Section):
    """The weighted sum that is minimised; see `SegmentationLoss`."""

    class_weights: Literal["none", "enet", "median_frequency", "root_median_frequency"]
    ohem: bool
    dice: Weight
    lovasz: Weight
    auxiliary: Weight


class OptimizerConfig(_Section):
    """How it is minimised. `momentum` is that of SGD and Muon. `clip_grad_norm` 0 is without.

    The warm-up takes at most half of the run's steps; a run with a longer one says so and shortens it.
    """

    name: Literal["adamw", "sgd", "muon"]
    learning_rate: Rate
    backbone_lr_scale: Rate
    weight_decay: Weight
    momentum: Fraction
    schedule: Literal["polynomial", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)]
    clip_grad_norm: Annotated[float, Field(ge=0, le=10**9)]


class ClassifierConfig(_Section):
    """The classifier that is pre-trained; see `SemanticSupervisionClassifier`.

    `head_weights` are those of the auxiliary losses on stages res-2 to res-5; a stage of weight 0 has no head, so four
    zeros are plain pre-training.
    """

    backbone: Text
    head_weights: tuple[Weight, Weight, Weight, Weight]
    label_smoothing: Share


class RunConfig(_Section):
    """What every training run says.

    `batch_size` counts the samples of one optimizer step over all processes; `gradient_accumulation` cuts it into
    that many forward passes. Pieces count by their labelled pixels, as they would in one pass; see `exfuse.losses`.
    `ema_decay` 0 is without. `evaluate_every` counts epochs, `checkpoint_every` and `log_every` steps. A run ends at a
    loss or gradient that is not finite, or leaves such steps out, at most `max_skipped_steps` in a row.
    """

    command: ClassVar[str]

    output: FilePath
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    epochs: Count
    batch_size: Annotated[int, Field(ge=1, le=65536)]
    gradient_accumulation: Annotated[int, Field(ge=1, le=65536)]
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    ema_decay: Share
    evaluate_every: Count
    checkpoint_every: Count
    log_every: Count
    max_skipped_steps: Annotated[int, Field(ge=0, le=10)]
    data: InputConfig
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _divisible(self) -> "RunConfig":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation {self.gradient_accumulation}"
            )
        return self


class SegmentationConfig(RunConfig):
    """What every run says that trains a segmentation network."""

    data: DataConfig
    model: ModelConfig
    loss: LossConfig


class TrainingConfig(SegmentationConfig):
    """A run of `exfuse train`."""

    command = "exfuse train"

    task: Literal["segmentation"]


class PretrainingConfig(RunConfig):
    """A run of `exfuse pretrain`."""

    command = "exfuse pretrain"

    task: Literal["classification"]
    data: ClassificationDataConfig
    model: ClassifierConfig


class PretrainedConfig(_Section):
    """Folders of `exfuse pretrain` that the rows of an ablation begin with; without them they begin at random.

    `plain` is without auxiliary heads, `supervised` with them; the other two are the same of the rearranged backbone.
    """

    plain: FilePath | None
    supervised: FilePath | None
    rearranged: FilePath | None
    rearranged_supervised: FilePath | None


class AblationConfig(SegmentationConfig):
    """Runs of `exfuse ablate`: the recipe that all rows share, the number of seeds, what the rows begin with."""

    command = "exfuse ablate"

    task: Literal["ablation"]
    seeds: Annotated[int, Field(ge=1, le=1000)]
    pretrained: PretrainedConfig

    @model_validator(mode="after")
    def _rows_decide(self) -> "AblationConfig":
        model = self.model
        decided = {
            "semantic_embedding": None, "semantic_embedding_width": None, "channel_resolution_embedding": None,
            "auxiliary_prediction": None, "dap_window": None, "backbone_weights": None, "weights": None,
            "dap_control_conv": False, "supervised_features": False, "decoder_width": "wide",
        }  # fmt: skip
        for key, value in decided.items():
            if getattr(model, key) != value:
                hint = "; use pretrained.plain" if key.endswith("weights") else ""
                raise ValueError(f"model.{key} is decided by each row of the ablation; leave it {value}{hint}")
        return self
