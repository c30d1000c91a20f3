"""`exfuse ablate`: each trial is run once, on the same data and from the same weights."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from exfuse.ablation import rows
from exfuse.data.datasets import open_dataset
from exfuse.evaluation.bootstrap import mean_iou
from exfuse.models import backbones
from exfuse.models.backbones import resnet
from exfuse.models.semantic_supervision import SemanticSupervisionClassifier
from exfuse.models.storage.backbone_weights import CLASSIFIER_TYPE
from exfuse.models.storage.pretrained import save_pretrained
from exfuse.outputs.folder import claim_folder
from exfuse.predictor import Predictor
from support.holding import HOLD_UNTIL_THERE
from support.tiny_run import TINY, Outcome, call_exfuse, tensors_in

BASELINES = tuple(row for row in rows.PAPER if row.name in ("baseline", "wide baseline"))
ABLATION = (*TINY, "epochs=1", "model.name=gcn_tiny", "model.decoder_width=narrow", "seeds=1")


@contextmanager
def only_two_rows() -> Iterator[None]:
    """Leaves two rows of the paper's, the baseline and the wide one, to be run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "PAPER", BASELINES)
        yield


@pytest.fixture
def two_rows() -> Iterator[None]:
    with only_two_rows():
        yield


class Ablated(NamedTuple):
    """An ablation that was run, and the command without its output."""

    folder: Path
    command: tuple[str, ...]
    outcome: Outcome

    @property
    def table(self) -> str:
        """Returns the page without the command, which names the folder."""
        command, _, page = (self.folder / "ablation.md").read_text().partition("\n")
        assert command.startswith("`exfuse ablate")
        return page

    def run(self, *overrides: str) -> Outcome:
        return call_exfuse(*self.command, f"output={self.folder}", *overrides)

    def trial(self, name: str) -> Path:
        return self.folder / "trials" / name


@pytest.fixture(scope="module")
def finished_ablation(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Ablated:
    """An ablation of two rows with one seed that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    command = ("ablate", "paper", *ABLATION, f"data.root={pack}")
    with only_two_rows():
        outcome = call_exfuse(*command, f"output={folder}")
    assert outcome.code == 0, outcome.errors
    return Ablated(folder, command, outcome)


@pytest.fixture
def ablated(two_rows: None, finished_ablation: Ablated, tmp_path: Path) -> Ablated:
    """A copy of it that a test may change and run again."""
    return finished_ablation._replace(folder=Path(shutil.copytree(finished_ablation.folder, tmp_path / "out")))


def change_record(path: Path, **changes: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_ablation_leaves_a_table_and_a_folder_for_each_trial(finished_ablation: Ablated) -> None:
    assert "wide baseline, seed 0" in finished_ablation.outcome.output
    assert "exfuse ablate paper" in (finished_ablation.folder / "ablation.md").read_text()
    assert sorted(path.name for path in finished_ablation.trial("").glob("*_0")) == ["baseline_0", "wide_baseline_0"]


def test_the_record_of_a_trial_counts_what_its_model_labels(finished_ablation: Ablated, pack: Path) -> None:
    record = json.loads((finished_ablation.trial("baseline_0") / "trial.json").read_text())
    predictor = Predictor.from_pretrained(finished_ablation.trial("baseline_0") / "model_last", "torch", "bf16")
    labels = predictor(open_dataset(pack, "val")[1].image).labels
    target = open_dataset(pack, "val")[1].mask
    assert sum(record["per_image"][1][0]) == int((labels == target)[target != 255].sum())
    assert f"{100 * float(mean_iou(np.array(record['per_image']).sum(axis=0))):.2f}" in finished_ablation.table


def test_a_finished_ablation_is_not_run_again(ablated: Ablated) -> None:
    table, left = ablated.table, tensors_in(ablated.folder)
    again = ablated.run()
    assert again.code == 0, again.errors
    assert ablated.table == table
    after = tensors_in(ablated.folder)
    assert all(torch.equal(after[name], left[name]) for name in left)


def test_other_settings_than_a_trial_was_run_with_are_refused(ablated: Ablated) -> None:
    other = ablated.run("batch_size=2")
    assert other.code == 1
    assert re.search(r"baseline_0: .*\bbatch_size\b", other.errors)


@pytest.mark.parametrize("split", ["val", "train"])
def test_other_data_than_a_trial_was_run_with_is_refused(split: str, ablated: Ablated, own_pack: Path) -> None:
    whole = (own_pack / f"{split}.txt").read_text()
    (own_pack / f"{split}.txt").write_text("".join(whole.splitlines(keepends=True)[:2]))
    elsewhere = ablated.run(f"data.root={own_pack}")
    assert elsewhere.code == 1
    assert re.search(r"baseline_0/trial\.json: .*different data\b", elsewhere.errors)


def test_other_backbone_weights_than_a_trial_was_run_with_are_refused(ablated: Ablated) -> None:
    change_record(ablated.trial("baseline_0") / "trial.json", backbone_sha256="0" * 64)
    retrained = ablated.run()
    assert retrained.code == 1
    assert re.search(r"/baseline_0/trial\.json: .*backbone weights", retrained.errors)


def test_a_trial_that_was_cut_off_goes_on_with_the_backbone_weights_it_began_with(ablated: Ablated) -> None:
    (ablated.trial("wide_baseline_0") / "trial.json").unlink()  # as if it had been cut off after its last checkpoint
    change_record(ablated.trial("wide_baseline_0.json"), backbone_sha256="0" * 64)
    assert re.search(r"wide_baseline_0\.json: .*backbone weights", ablated.run().errors)


def test_a_trial_that_was_cut_off_is_finished(ablated: Ablated) -> None:
    table = ablated.table
    (ablated.trial("wide_baseline_0") / "trial.json").unlink()
    resumed = ablated.run()
    assert resumed.code == 0, resumed.errors
    assert ablated.table == table


def test_a_damaged_record_of_a_trial_is_refused(ablated: Ablated) -> None:
    path = ablated.trial("wide_baseline_0") / "trial.json"
    path.write_text("{")
    broken = ablated.run()
    assert broken.code == 1
    assert re.search(f"{path}: .*record", broken.errors)


def narrow_rearranged() -> resnet.ResNet:
    return resnet.ResNet(resnet.BasicBlock, (2, 1, 1, 1), widths=(16, 32, 64, 128), stem_channels=16)


def narrow_backbones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Writes a backbone for each of the paper's starts and returns the options that name them."""
    monkeypatch.setitem(backbones.BACKBONES, "tiny_rearranged", narrow_rearranged)
    bodies = {"plain": resnet.tiny, "supervised": resnet.tiny, "rearranged": narrow_rearranged}
    bodies["rearranged_supervised"] = narrow_rearranged
    given = []
    for name, body in bodies.items():
        heads = (name.endswith("supervised"),) * 4
        description = {"model_type": CLASSIFIER_TYPE, "architecture": {"with_head": heads}}
        model = SemanticSupervisionClassifier(body(), 4, heads)
        save_pretrained(folder / name, model, description, card="")
        given.append(f"pretrained.{name}={folder / name}")
    return given


def test_the_backbone_of_the_last_row_is_looked_at_before_the_first_is_run(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = narrow_backbones(tmp_path, monkeypatch)
    given.append(f"pretrained.rearranged_supervised={tmp_path / 'supervised'}")
    outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", *given, f"output={tmp_path / 'out'}")
    assert outcome.code == 1
    assert str(tmp_path / "supervised") in outcome.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly  # 23 runs
def test_every_row_of_the_ablation_is_run(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = narrow_backbones(tmp_path, monkeypatch)
    outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", *given, f"output={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.errors
    table = list(csv.DictReader((tmp_path / "out" / "ablation.csv").read_text().splitlines()))
    assert [line["row"] for line in table] == [row.name for row in rows.PAPER]
    assert [line["published mIoU"] for line in table][:2] == ["76.0", "77.5"]
    assert len(table) == 23
    assert "left out" not in outcome.output
    trials = tmp_path / "out" / "trials"
    started = {path.stem: json.loads(path.read_text())["backbone_sha256"] for path in trials.glob("*_0.json")}
    assert started["ss_0"] == started["ss_heads_dropped_0"] != started["wide_baseline_0"]
    assert len(set(started.values())) == len(given)


@pytest.mark.usefixtures("two_rows")
def test_processes_share_the_trials_of_an_ablation(pack: Path, tmp_path: Path) -> None:
    trials = tmp_path / "out" / "trials"
    with claim_folder(tmp_path / "out", "exfuse ablate", shared=True):
        trials.mkdir()
    command = [
        sys.executable,
        "-c",
        HOLD_UNTIL_THERE,
        trials / ".baseline_0.lock",
        trials / "wide_baseline_0/trial.json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        outcome = call_exfuse("ablate", "paper", *ABLATION, f"data.root={pack}", f"output={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.errors
    told = [line for line in outcome.output.splitlines() if ", seed 0" in line]
    assert told == ["wide baseline, seed 0", "baseline, seed 0"]
    assert (trials / "baseline_0" / "trial.json").is_file()
    assert (tmp_path / "out" / "ablation.md").is_file()
