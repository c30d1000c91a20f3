"""Which rows there are, what they change, and the table that is made of them."""

import csv
import io
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exfuse.ablation.rows import ALL_OFF, PAPER, REFERENCE, plan_rows, trial_config
from exfuse.ablation.run import Ablation, Trial
from exfuse.ablation.table import Line, comma_separated, figure, markdown, table_lines, write_tables
from exfuse.errors import ConfigError
from exfuse.models.registry import create_model
from exfuse.outputs.folder import claim_folder
from exfuse.training.recipes import differing_keys, load_ablation_config

PRETRAINED = (
    "pretrained.plain=plain",
    "pretrained.supervised=ss",
    "pretrained.rearranged=lr",
    "pretrained.rearranged_supervised=lrss",
)


def names_of(*overrides: str) -> tuple[list[str], dict[str, str]]:
    plan = plan_rows(load_ablation_config("paper", ["data.root=photos", *overrides]))
    return [row.name for row in plan.rows], dict(plan.left_out)


def test_with_every_pretrained_backbone_all_rows_are_run() -> None:
    names, left_out = names_of(*PRETRAINED)
    assert names == [row.name for row in PAPER]
    assert len(set(names)) == len(names) == 23
    assert left_out == {}


def test_rows_that_cannot_be_run_are_named_with_the_reason() -> None:
    names, left_out = names_of()
    assert {row.name for row in PAPER if "supervised" in row.begins_with} == set(left_out)
    assert "pretrained.rearranged_supervised" in left_out["all"]
    assert "+ SS" in names_of("pretrained.supervised=ss")[1]  # against a reference from random weights
    assert "+ LR" in names  # from random weights, as the others
    without_form = names_of("model.name=gcn_resnet18", *PRETRAINED)[1]
    assert set(without_form) == {row.name for row in PAPER if row.rearranged}
    assert all("gcn_resnet18 has no rearranged form" in reason for reason in without_form.values())
    assert "both or neither" in names_of("pretrained.plain=plain")[1]["+ LR"]


def test_the_papers_tables_come_first_in_their_order_with_their_figures() -> None:
    assert [(row.name, row.published) for row in PAPER[:9]] == [
        ("baseline", 76.0),
        ("+ SS", 77.5),
        ("+ SS, LR", 78.3),
        ("+ SS, LR, ECRE", 78.8),
        ("+ SS, LR, SEB", 79.0),
        ("+ SS, LR, SEB, DAP", 79.6),
        ("all", 80.0),
        ("+ SS, LR, auxiliary loss, no sub-pixel", 78.2),
        ("+ SS, LR, sub-pixel, no auxiliary loss", 77.6),
    ]
    assert {row.published for row in PAPER[9:]} == {None}


SS = {"supervised_features", "backbone_weights"}
SS_LR = SS | {"name"}
ECRE = {"channel_resolution_embedding", "auxiliary_prediction"}
CHANGES = {
    "baseline": set(),
    "+ SS": SS,
    "+ SS, LR": SS_LR,
    "+ SS, LR, ECRE": SS_LR | ECRE,
    "+ SS, LR, SEB": SS_LR | {"semantic_embedding"},
    "+ SS, LR, SEB, DAP": SS_LR | {"semantic_embedding", "dap_window"},
    "all": SS_LR | ECRE | {"semantic_embedding", "dap_window"},
    "+ SS, LR, auxiliary loss, no sub-pixel": SS_LR | {"auxiliary_prediction"},
    "+ SS, LR, sub-pixel, no auxiliary loss": SS_LR | {"channel_resolution_embedding"},
    "+ SS, heads dropped": {"backbone_weights"},
    "+ LR": {"name", "backbone_weights"},
    "+ ECRE": ECRE,
    "+ auxiliary loss, no sub-pixel": {"auxiliary_prediction"},
    "+ sub-pixel, no auxiliary loss": {"channel_resolution_embedding"},
    "+ SEB": {"semantic_embedding"},
    "+ SEB, reduced": {"semantic_embedding", "semantic_embedding_width"},
    "+ DAP": {"dap_window"},
    "+ 5x5 in DAP's place": {"dap_window", "dap_control_conv"},
    "+ ECRE, SEB, DAP": ECRE | {"semantic_embedding", "dap_window"},
    "all but SS": ECRE | {"semantic_embedding", "dap_window", "name", "backbone_weights"},
    "all but LR": ECRE | {"semantic_embedding", "dap_window"} | SS,
    "wide baseline": {"decoder_width"},
    "all, wide": SS_LR | ECRE | {"semantic_embedding", "dap_window", "decoder_width"},
}


def test_each_row_changes_the_reference_in_what_it_is_named_for() -> None:
    config = load_ablation_config("paper", ["data.root=photos", *PRETRAINED])
    trials = {row.name: trial_config(config, row, 0, 11) for row in PAPER}
    changes = {
        name: {key.removeprefix("model.") for key in differing_keys(trials[REFERENCE], trial)}
        for name, trial in trials.items()
    }
    assert changes == CHANGES
    assert trials[REFERENCE].model.decoder_width == "narrow"
    assert trials["wide baseline"].model.decoder_width == 99  # as wide as "wide" is with densely adjacent prediction
    assert trials["all, wide"].model.decoder_width == "wide"


def test_every_cell_has_a_folder_of_its_own_and_rows_share_their_seeds() -> None:
    config = load_ablation_config("paper", ["data.root=photos", "seed=10", *PRETRAINED])
    trials = {(row.name, seed): trial_config(config, row, seed, 5) for row in PAPER for seed in (0, 1)}
    assert len({trial.output for trial in trials.values()}) == len(trials) == 46
    assert {trial.seed for (_, seed), trial in trials.items() if seed == 1} == {11}
    assert trials["+ SEB", 0].output == Path("runs/paper/trials/seb_0")
    for (_, seed), trial in trials.items():
        if seed == 0:
            with torch.device("meta"):
                create_model(trial.model.name, num_classes=2, **asdict(trial.model.options) | {"decoder_width": 18})


DECIDED = (
    "model.dap_window=3", "model.backbone_weights=resnet34.safetensors", "model.weights=runs/x/model",
    "model.decoder_width=48", "model.supervised_features=true", "model.semantic_embedding=true",
    "model.semantic_embedding_width=64", "model.channel_resolution_embedding=true", "model.auxiliary_prediction=true",
    "model.dap_control_conv=true",
)  # fmt: skip


def test_all_that_the_rows_switch_off_is_among_what_cannot_be_set() -> None:
    assert {f"model.{key}" for key in ALL_OFF} <= {override.partition("=")[0] for override in DECIDED}


@pytest.mark.parametrize("override", DECIDED)
def test_what_the_rows_decide_cannot_be_set(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}\b.* row"):
        load_ablation_config("paper", ["data.root=photos", override])


def made_up_cell(seed: int, skill: float) -> Trial:
    rng = np.random.default_rng(seed)
    true = rng.integers(400, 500, (30, 4))
    hits = (true * np.clip(rng.normal(skill, 0.02, (30, 4)), 0, 1)).astype(int)
    return Trial(np.stack([hits, true, true], axis=1), 11_000_000, 5_000_000_000, 1.25, 1800.0, "a machine")


def made_up_ablation(seeds: int) -> Ablation:
    skills = {REFERENCE: 0.6, "+ SS": 0.5, "+ SEB": 0.6}
    trials = {
        name: tuple(made_up_cell(10 * place + seed, skill) for seed in range(seeds))
        for place, (name, skill) in enumerate(skills.items())
    }
    return Ablation(trials, (("+ LR", "there is no rearranged form of gcn_resnet18"),), "val, 30 images")


@pytest.fixture
def ablation() -> Ablation:
    return made_up_ablation(seeds=3)


def test_a_gain_that_could_be_none_is_called_so(ablation: Ablation) -> None:
    lines = {line.name: line for line in table_lines(ablation)}
    assert lines["+ SS"].interval.high < 0
    assert lines["+ SS"].distinguishable is True
    assert "not distinguishable" not in lines["+ SS"].verdict()
    assert lines["+ SEB"].interval.contains(0)
    assert lines["+ SEB"].distinguishable is False
    assert lines["+ SEB"].verdict().endswith("not distinguishable")
    assert lines[REFERENCE].verdict() == "-"
    scores = [100 * trial.mean_iou for trial in ablation.trials["+ SS"]]
    assert lines["+ SS"].mean == pytest.approx(np.mean(scores))
    assert lines["+ SS"].spread == pytest.approx(np.std(scores, ddof=1))
    assert colors_of(table_lines(ablation)) == {"+ SEB": "tab:gray", "+ SS": "tab:blue"}


def colors_of(lines: tuple[Line, ...]) -> dict[str, str]:
    """Returns the colour of each row in the figure."""
    axes = figure(lines).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    return dict(zip(names, [line.get_color() for line in axes.lines][1::2], strict=False))


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_get_no_verdict_in_any_form(seeds: int) -> None:
    ablation = made_up_ablation(seeds)
    lines = table_lines(ablation)
    assert lines[1].interval.high < 0 < lines[2].interval.high
    assert {line.distinguishable for line in lines} == {None}
    numbers = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    assert all(re.fullmatch(numbers, line.verdict()) for line in lines if line.name != REFERENCE)
    text = markdown(ablation, lines, "command")
    assert "distinguishable" not in text
    assert "3 seeds" in text
    assert "distinguishable" not in comma_separated(lines)
    assert set(colors_of(lines).values()) == {"tab:gray"}
    assert "distinguishable" not in figure(lines).axes[0].get_xlabel()


def test_rows_without_a_labelled_pixel_are_written_down(tmp_path: Path) -> None:
    trials = {name: tuple(replace(trial, per_image=0 * trial.per_image) for trial in of_row)
             for name, of_row in made_up_ablation(seeds=3).trials.items()}  # fmt: skip
    with claim_folder(tmp_path, "exfuse ablate") as folder:
        write_tables(Ablation(trials, (), "val, 30 images"), folder, "command")
    assert (tmp_path / "ablation.png").is_file()
    assert "| nan |" in (tmp_path / "ablation.md").read_text()


def test_a_split_s_name_is_no_markup(ablation: Ablation) -> None:
    text = markdown(replace(ablation, split="<b>|val|</b>, 30 images"), table_lines(ablation), "command")
    assert r"&lt;b&gt;\|val\|&lt;/b&gt;, 30 images" in text


def test_the_table_says_what_it_shows(ablation: Ablation) -> None:
    text = markdown(ablation, table_lines(ablation), "exfuse ablate paper data.root=photos")
    for part in (
        "`exfuse ablate paper data.root=photos`",
        "val, 30 images; 3 seeds",
        "| 77.5 |",
        "VOC 2012 val, from its Tables 3 and 4",
        "11.00",
        "5.00",
        "1.25",
        "4.5 hours of training steps in total, on a machine (9 runs).",
    ):
        assert part in text
    assert re.search(r"^- \+ LR: .*gcn_resnet18$", text, flags=re.M)
    rows = list(csv.DictReader(io.StringIO(comma_separated(table_lines(ablation)))))
    assert [row["row"] for row in rows] == [REFERENCE, "+ SS", "+ SEB"]
    assert float(rows[1]["low"]) < float(rows[1]["high"]) < 0
    assert [row["published mIoU"] for row in rows] == ["76.0", "77.5", ""]


def test_one_seed_has_no_spread(ablation: Ablation, tmp_path: Path) -> None:
    single = Ablation({name: trials[:1] for name, trials in ablation.trials.items()}, (), ablation.split)
    text = markdown(single, table_lines(single), "command")
    assert "1 seed," in text
    assert "| - |" in text
    with claim_folder(tmp_path / "out", "exfuse ablate") as folder:
        write_tables(single, folder, "command")
    assert sorted(path.name for path in (tmp_path / "out").glob("ablation*")) == [
        "ablation.csv", "ablation.md", "ablation.png",
    ]  # fmt: skip
    assert (tmp_path / "out" / "ablation.png").read_bytes().startswith(b"\x89PNG")
