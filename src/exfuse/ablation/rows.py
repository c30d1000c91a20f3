"""The rows of the ablation as changes to one recipe: those of the paper's tables, and each part alone."""

from dataclasses import dataclass
from typing import Any

from exfuse.models.registry import list_models
from exfuse.training.config import AblationConfig, TrainingConfig

DAP_WINDOW = 3
REDUCED = 128  # channels
# All parts off. The decoder has K channels, as in the paper's figure 2, so that a row differs from the baseline only in
# the parts in its name, and not in its width.
ALL_OFF: dict[str, Any] = {
    "supervised_features": False,
    "semantic_embedding": False,
    "semantic_embedding_width": None,
    "channel_resolution_embedding": False,
    "auxiliary_prediction": False,
    "dap_window": 1,
    "dap_control_conv": False,
}
REFERENCE = "baseline"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Name of the row.
        options: Model options that differ from `ALL_OFF`.
        begins_with: The pre-trained backbone it starts from, a field of `PretrainedConfig`.
        rearranged: Whether the backbone is the rearranged one.
        wide: Whether the decoder has K * k * k channels instead of K, where k is `DAP_WINDOW`.
        published: The paper's mIoU on VOC 2012 val in points, or None if its tables have no such row.
    """

    name: str
    options: dict[str, Any]
    begins_with: str = "plain"
    rearranged: bool = False
    wide: bool = False
    published: float | None = None


@dataclass(frozen=True)
class Plan:
    """The rows to run.

    Attributes:
        rows: Rows that can be run, including the reference.
        left_out: Name and reason of each row that cannot be run.
    """

    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]


AUXILIARY = {"auxiliary_prediction": True}
SUB_PIXEL = {"channel_resolution_embedding": True}
EMBEDDED = AUXILIARY | SUB_PIXEL
SEB = {"semantic_embedding": True}
DAP = {"dap_window": DAP_WINDOW}
DECODER = EMBEDDED | SEB | DAP
# Supervision in the form in which the decoder reads the heads' second convolutions. In our reading this is the form in
# the paper's Table 3: its gain of 1.5 points is the one reported for this form; dropped heads are reported with 1.1.
SS = {"supervised_features": True}


def _rearranged(name: str, options: dict[str, Any], published: float | None = None, wide: bool = False) -> Row:
    """Returns a row with supervision and rearrangement, to which the paper's tables add the other parts."""
    return Row(name, SS | options, "rearranged_supervised", rearranged=True, wide=wide, published=published)


PAPER = (
    # Table 3, in its order.
    Row("baseline", {}, published=76.0),
    Row("+ SS", SS, begins_with="supervised", published=77.5),
    _rearranged("+ SS, LR", {}, 78.3),
    _rearranged("+ SS, LR, ECRE", EMBEDDED, 78.8),
    _rearranged("+ SS, LR, SEB", SEB, 79.0),
    _rearranged("+ SS, LR, SEB, DAP", SEB | DAP, 79.6),
    _rearranged("all", DECODER, 80.0),
    # Table 4: the two halves of ECRE. Its other two rows, without ECRE and with it, are in Table 3.
    _rearranged("+ SS, LR, auxiliary loss, no sub-pixel", AUXILIARY, 78.2),
    _rearranged("+ SS, LR, sub-pixel, no auxiliary loss", SUB_PIXEL, 77.6),
    # Each part alone, and other rows that are not in the paper's tables.
    Row("+ SS, heads dropped", {}, begins_with="supervised"),
    Row("+ LR", {}, begins_with="rearranged", rearranged=True),
    Row("+ ECRE", EMBEDDED),
    Row("+ auxiliary loss, no sub-pixel", AUXILIARY),
    Row("+ sub-pixel, no auxiliary loss", SUB_PIXEL),
    Row("+ SEB", SEB),
    Row("+ SEB, reduced", SEB | {"semantic_embedding_width": REDUCED}),
    Row("+ DAP", DAP),
    Row("+ 5x5 in DAP's place", DAP | {"dap_control_conv": True}),
    Row("+ ECRE, SEB, DAP", DECODER),
    Row("all but SS", DECODER, begins_with="rearranged", rearranged=True),
    Row("all but LR", DECODER | SS, begins_with="supervised"),
    # A decoder with the K * k * k channels that densely adjacent prediction needs, alone and with all parts.
    Row("wide baseline", {}, wide=True),
    _rearranged("all, wide", DECODER, wide=True),
)


def plan_rows(config: AblationConfig) -> Plan:
    """Returns the rows that can be run with the given pre-trained backbones.

    Args:
        config: The ablation.
    """
    rows, left_out = [], []
    for row in PAPER:
        given, plain = getattr(config.pretrained, row.begins_with), config.pretrained.plain
        if row.rearranged and _model_name(config, row) not in list_models():
            left_out.append((row.name, f"{config.model.name} has no rearranged form"))
        elif row.begins_with.endswith("supervised") and None in (given, plain):
            # Compared with a reference from random weights, it would show the effect of pre-training, not supervision.
            needed = f"needs pretrained.{row.begins_with} and pretrained.plain, folders of exfuse pretrain"
            left_out.append((row.name, needed))
        elif row.rearranged and (given is None) != (plain is None):
            left_out.append((row.name, "needs pretrained.rearranged and pretrained.plain, both or neither"))
        else:
            rows.append(row)
    return Plan(tuple(rows), tuple(left_out))


def trial_config(config: AblationConfig, row: Row, seed: int, num_classes: int) -> TrainingConfig:
    """Returns the configuration of one row's run with one seed.

    Args:
        config: The ablation.
        row: The row.
        seed: 0 to `config.seeds` - 1; added to the recipe's seed.
        num_classes: Number of classes K of the data set.
    """
    model = config.model.model_dump() | ALL_OFF | row.options
    model["name"] = _model_name(config, row)
    if not row.wide:
        model["decoder_width"] = "narrow"
    else:  # "wide" depends on the row's window, so without densely adjacent prediction the width is a number
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
