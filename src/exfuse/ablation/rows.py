"""The rows of the paper's ablation, as changes to one recipe."""

from dataclasses import dataclass
from typing import Any

from exfuse.models.registry import list_models
from exfuse.training.config import AblationConfig, TrainingConfig

DAP_WINDOW = 3
REDUCED = 128  # channels
# Everything off. The paper's decoder is as wide as densely adjacent prediction needs it, K * k * k, and so is every
# row's but the first's: what width alone gives must not be taken for a part's gain.
ALL_OFF: dict[str, Any] = {
    "supervised_features": False,
    "semantic_embedding": False,
    "semantic_embedding_width": None,
    "channel_resolution_embedding": False,
    "auxiliary_prediction": False,
    "dap_window": 1,
    "dap_control_conv": False,
}
REFERENCE = "wide baseline"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What it is called.
        options: Those of the model that differ from `ALL_OFF`.
        begins_with: Which pre-trained backbone it takes, of the names in `PretrainedConfig`.
        rearranged: Whether the backbone is the rearranged one.
        narrow: Whether the decoder has K channels only.
    """

    name: str
    options: dict[str, Any]
    begins_with: str = "plain"
    rearranged: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        rows: Rows that can be run, the reference among them.
        left_out: Name and reason of those that cannot.
    """

    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]


EMBEDDED = {"channel_resolution_embedding": True, "auxiliary_prediction": True}
DECODER = EMBEDDED | {"semantic_embedding": True, "dap_window": DAP_WINDOW}
PAPER = (
    Row("baseline", {}, narrow=True),
    Row(REFERENCE, {}),
    Row("+ SS", {}, begins_with="supervised"),
    Row("+ SS, second convolution", {"supervised_features": True}, begins_with="supervised"),
    Row("+ LR", {}, begins_with="rearranged", rearranged=True),
    Row("+ ECRE", EMBEDDED),
    Row("+ auxiliary loss, no sub-pixel", {"auxiliary_prediction": True}),
    Row("+ sub-pixel, no auxiliary loss", {"channel_resolution_embedding": True}),
    Row("+ SEB", {"semantic_embedding": True}),
    Row("+ SEB, reduced", {"semantic_embedding": True, "semantic_embedding_width": REDUCED}),
    Row("+ DAP", {"dap_window": DAP_WINDOW}),
    Row("+ 5x5 in DAP's place", {"dap_window": DAP_WINDOW, "dap_control_conv": True}),
    Row("+ ECRE, SEB, DAP", DECODER),
    Row("all but SS", DECODER, begins_with="rearranged", rearranged=True),
    Row("all but LR", DECODER | {"supervised_features": True}, begins_with="supervised"),
    Row("all", DECODER | {"supervised_features": True}, begins_with="rearranged_supervised", rearranged=True),
)


def plan_rows(config: AblationConfig) -> Plan:
    """Returns which rows can be run with the pre-trained backbones at hand.

    Args:
        config: The ablation.
    """
    rows, left_out = [], []
    for row in PAPER:
        given, plain = getattr(config.pretrained, row.begins_with), config.pretrained.plain
        if row.rearranged and _model_name(config, row) not in list_models():
            left_out.append((row.name, f"there is no rearranged form of {config.model.name}"))
        elif row.begins_with.endswith("supervised") and None in (given, plain):
            # Against a reference from random weights it would show what pre-training gives, not supervision.
            needed = f"needs pretrained.{row.begins_with} and pretrained.plain, folders of exfuse pretrain"
            left_out.append((row.name, needed))
        elif row.rearranged and (given is None) != (plain is None):
            left_out.append((row.name, "needs pretrained.rearranged and pretrained.plain, both or neither"))
        else:
            rows.append(row)
    return Plan(tuple(rows), tuple(left_out))


def trial_config(config: AblationConfig, row: Row, seed: int, num_classes: int) -> TrainingConfig:
    """Returns the run of one row with one seed.

    Args:
        config: The ablation.
        row: The row.
        seed: 0 to `config.seeds` - 1; added to the recipe's own.
        num_classes: K of the data set.
    """
    model = config.model.model_dump() | ALL_OFF | row.options
    model["name"] = _model_name(config, row)
    if row.narrow:
        model["decoder_width"] = "narrow"
    else:  # by name where that is what densely adjacent prediction needs
        model["decoder_width"] = "wide" if model["dap_window"] == DAP_WINDOW else num_classes * DAP_WINDOW**2
    model["backbone_weights"] = getattr(config.pretrained, row.begins_with)
    content = config.model_dump(exclude={"seeds", "pretrained"}) | {
        "task": "segmentation",
        "output": config.output / "trials" / f"{_file_name(row)}_{seed}",
        "seed": config.seed + seed,
        "model": model,
    }
    return TrainingConfig.model_validate(content)


def _model_name(config: AblationConfig, row: Row) -> str:
    return f"{config.model.name}_rearranged" if row.rearranged else config.model.name


def _file_name(row: Row) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in row.name).split()
    return "_".join(words).lower()
