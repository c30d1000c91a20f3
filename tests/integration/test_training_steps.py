"""The steps of training: their losses, gradients and averages, and those that are not finite."""

import errno
import itertools
import json
import math
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exfuse.atomic_io import atomic_write_text
from exfuse.data.loader import ResumableBatchSampler
from exfuse.errors import CheckpointError, TrainingError
from exfuse.losses import SegmentationLoss
from exfuse.models.registry import create_model
from exfuse.training import loop, nonfinite
from exfuse.training.log import RunLog
from exfuse.training.signals import Interrupted
from support.small_datasets import ignore_everything_in
from support.tiny_run import (
    STEPS,
    assert_same_run,
    losses_of,
    tensors_in,
    tiny_config,
    train_quietly,
)
from support.training_hooks import do_after_step, keep_networks, press_control_c, spoil_gradients


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_the_weights_before_it(
    value: float, finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "checkpoint_every=1")
    compute, calls = SegmentationLoss.__call__, itertools.count(1)

    def spoil_the_fifth(loss: SegmentationLoss, *arguments: Any) -> Tensor:
        return compute(loss, *arguments) * (value if next(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        networks = keep_networks(patch)
        patch.setattr(SegmentationLoss, "__call__", spoil_the_fifth)
        with pytest.raises(TrainingError) as stopped:
            train_quietly(config)
    keys = [list(key) for key in next(iter(ResumableBatchSampler(12, 4, 4, 5, seed=config.seed)))]
    assert re.search(rf"step 5: .*\bloss .*\b{value}\b", str(stopped.value))
    written = config.output / "not_finite_0.json"
    assert str(written) in str(stopped.value)
    record = json.loads(written.read_text())
    assert (record["step"], record["seed"], record["samples"]) == (5, 0, keys)
    assert record["files"] == [str(pack / "images" / f"train_{index:04d}.jpg") for _, index in keys]
    network = networks[0]
    saved = tensors_in(config.output / "checkpoints" / "step_00000004")
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, saved[f"model.safetensors {name}"])
    assert losses_of(config.output) == losses_of(finished)[:4]

    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(
    finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run")
    with monkeypatch.context() as patch:
        networks = keep_networks(patch)
        spoil_gradients(patch, {2})
        with pytest.raises(TrainingError, match=r"step 3: .*norm inf"):
            train_quietly(config)
    saved = tensors_in(config.output / "checkpoints" / "step_00000002")
    for name, parameter in networks[0].named_parameters():
        assert torch.equal(parameter, saved[f"model.safetensors {name}"])
    train_quietly(config, resume=True)
    assert_same_run(config.output, finished)


def test_a_full_disk_does_not_hide_what_was_not_finite(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        if path.name == "not_finite_0.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        atomic_write_text(path, text)

    spoil_gradients(monkeypatch, {0})
    monkeypatch.setattr(nonfinite, "atomic_write_text", refuse)
    with pytest.raises(CheckpointError, match=r"not_finite_0\.json: .*No space left.* step 1\b"):
        train_quietly(tiny_config(pack, tmp_path / "run"))


def test_steps_that_are_not_finite_are_left_out_if_asked_for(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "max_skipped_steps=2", "checkpoint_every=1")
    networks, seen = keep_networks(monkeypatch), []
    advance = RunLog.advance

    def look(log: RunLog, status: str) -> None:
        advance(log, status)
        seen.append({name: value.clone() for name, value in networks[0].state_dict().items()})

    monkeypatch.setattr(RunLog, "advance", look)
    spoil_gradients(monkeypatch, {1, 2, 4})
    train_quietly(config)
    same = [
        all(torch.equal(before[name], after[name]) for name in before) for before, after in itertools.pairwise(seen)
    ]
    assert same == [True, True, False, True, False]  # batch-norm statistics included
    assert json.loads((config.output / "not_finite_0.json").read_text())["step"] == 5


def test_more_such_steps_in_a_row_than_asked_for_stop_the_run(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pack, tmp_path / "run", "max_skipped_steps=2")
    spoil_gradients(monkeypatch, {1, 2, 3})
    with pytest.raises(TrainingError, match="step 4"):
        train_quietly(config)


def watch_losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Returns a list that fills with (batch size, loss, labelled pixels) of each forward pass in training."""
    compute, seen = SegmentationLoss.__call__, []

    def compute_and_note(loss: SegmentationLoss, logits: Tensor, auxiliary: Any, target: Tensor) -> Tensor:
        value = compute(loss, logits, auxiliary, target)
        seen.append((len(target), float(value.detach()), int((target != 255).sum())))
        return value

    monkeypatch.setattr(SegmentationLoss, "__call__", compute_and_note)
    return seen


def test_accumulation_cuts_a_step_into_forward_passes(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_losses(monkeypatch)
    train_quietly(tiny_config(pack, tmp_path / "run", "epochs=1", "gradient_accumulation=2"))
    assert [size for size, _, _ in seen] == [2] * 6
    means = [
        (first * labelled + second * other) / (labelled + other)
        for (_, first, labelled), (_, second, other) in zip(seen[::2], seen[1::2], strict=True)
    ]
    assert losses_of(tmp_path / "run") == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.25])
def test_a_step_with_accumulation_and_clipping_is_the_one_on_paper(
    clip: float, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, networks = loop.training_loader, keep_networks(monkeypatch)
    seen: list[tuple[Tensor, Tensor]] = []

    def load_and_keep(*arguments: Any) -> Any:
        for batch in batches(*arguments):
            seen.append((batch.images, batch.targets))
            yield batch

    monkeypatch.setattr(loop, "training_loader", load_and_keep)
    config = tiny_config(
        pack,
        tmp_path / "run",
        "epochs=1",
        "batch_size=12",
        "gradient_accumulation=3",
        "optimizer.name=sgd",
        "optimizer.momentum=0",
        "optimizer.weight_decay=0",
        "optimizer.warmup_steps=0",
        "optimizer.learning_rate=0.5",
        f"optimizer.clip_grad_norm={clip}",
    )
    train_quietly(config)
    torch.manual_seed(config.seed)
    expected = create_model("exfuse_tiny", num_classes=7, **asdict(config.model.options)).train()
    ((images, masks),) = seen
    labelled = masks != 255
    for part in range(3):
        pixels = images[4 * part : 4 * part + 4].float() / 255
        output = expected((pixels - 0.5) / 0.25)
        target = masks[4 * part : 4 * part + 4].long()
        loss = torch.nn.functional.cross_entropy(output.logits, target, ignore_index=255)
        (auxiliary,) = output.auxiliary_logits
        enlarged = torch.nn.functional.interpolate(auxiliary, size=(64, 64), mode="bilinear")
        loss = loss + 0.4 * torch.nn.functional.cross_entropy(enlarged, target, ignore_index=255)
        (loss * (labelled[4 * part : 4 * part + 4].sum() / labelled.sum())).backward()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in expected.parameters()))
    assert norm > 0.25
    share = min(1.0, clip / norm) if clip else 1.0
    for ours, theirs in zip(networks[0].parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.5 * share * theirs.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_close_to_float32(finished: Path, pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "precision=bf16"))
    losses, plain = losses_of(tmp_path / "run"), losses_of(finished)
    assert losses != plain
    assert losses[0] == pytest.approx(plain[0], rel=0.02)
    assert all(math.isfinite(loss) for loss in losses)
    protocol = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["metrics"]["protocol"]
    assert protocol["precision"] == "bf16"


@pytest.mark.parametrize(
    "options",
    [
        ("loss.dice=1",),
        ("loss.lovasz=1",),
        ("loss.auxiliary=0",),
        ("loss.class_weights=enet",),
        ("loss.class_weights=median_frequency",),
    ],
    ids=lambda options: options[0],
)
def test_each_choice_of_the_loss_changes_the_first_loss_and_trains(
    options: tuple[str, ...], finished: Path, pack: Path, tmp_path: Path
) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", *options, "evaluate_every=2"))
    losses = losses_of(tmp_path / "run")
    assert abs(losses[0] - losses_of(finished)[0]) > 0.01
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses[3:]) < losses[0]


def test_hard_example_mining_gives_a_larger_loss_once_pixels_are_easy(pack: Path, tmp_path: Path) -> None:
    longer = ("epochs=5", "evaluate_every=5", "optimizer.learning_rate=0.01")
    train_quietly(tiny_config(pack, tmp_path / "plain", *longer))
    train_quietly(tiny_config(pack, tmp_path / "ohem", *longer, "loss.ohem=true"))
    plain, mined = losses_of(tmp_path / "plain"), losses_of(tmp_path / "ohem")
    assert mined[0] == plain[0]  # nothing is easy yet
    assert sum(mined[-6:]) > sum(plain[-6:]) + 0.1
    assert all(math.isfinite(loss) for loss in mined)


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer.name=sgd", "optimizer.schedule=cosine"),
        ("optimizer.name=muon",),
        ("optimizer.clip_grad_norm=0.1", "channels_last=false"),
    ],
    ids=lambda options: options[0],
)
def test_each_choice_of_the_optimizer_trains_and_resumes_to_the_bit(
    options: tuple[str, ...], finished: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*options, "evaluate_every=2")
    train_quietly(tiny_config(pack, tmp_path / "whole", *options))
    assert losses_of(tmp_path / "whole")[1:] != losses_of(finished)[1:]
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path / "whole"))
    config = tiny_config(pack, tmp_path / "parts", *options)
    with monkeypatch.context() as patch:
        do_after_step(patch, 3, press_control_c)
        with pytest.raises(Interrupted):
            train_quietly(config)
    train_quietly(config, resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_the_moving_average_follows_the_weights_of_every_step(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, averages = keep_networks(monkeypatch), []
    batches = loop.training_loader

    def weights_now() -> dict[str, Tensor]:
        return {name: value.detach().double().clone() for name, value in networks[0].named_parameters()}

    def load_after_a_look(*arguments: Any) -> Any:
        averages.append(weights_now())
        yield from batches(*arguments)

    def follow(log: RunLog, status: str) -> None:
        step = len(averages) - 1
        kept = min(0.3, (1 + step) / (10 + step))
        averages.append({name: kept * averages[-1][name] + (1 - kept) * now for name, now in weights_now().items()})

    monkeypatch.setattr(loop, "training_loader", load_after_a_look)
    monkeypatch.setattr(RunLog, "advance", follow)
    train_quietly(tiny_config(pack, tmp_path / "run", "ema_decay=0.3"))
    last = tensors_in(tmp_path / "run" / "model_last")
    assert len(averages) == 1 + STEPS
    for name, expected in averages[-1].items():
        torch.testing.assert_close(last[f"model.safetensors {name}"].double(), expected, rtol=1e-4, atol=1e-6)


def test_without_a_moving_average_the_network_itself_is_kept(pack: Path, tmp_path: Path) -> None:
    train_quietly(tiny_config(pack, tmp_path / "run", "ema_decay=0"))
    checkpoint = tensors_in(tmp_path / "run" / "checkpoints" / f"step_{STEPS:08d}")
    assert not any(name.startswith("average") for name in checkpoint)
    last = tensors_in(tmp_path / "run" / "model_last")
    assert last
    assert all(torch.equal(value, checkpoint[name]) for name, value in last.items())


@pytest.mark.parametrize("weights", ["none", "enet", "median_frequency", "root_median_frequency"])
def test_an_image_without_a_labelled_pixel_alone_in_its_batch_breaks_nothing(
    weights: str, own_pack: Path, tmp_path: Path
) -> None:
    names = (own_pack / "train.txt").read_text().split()[:3]
    (own_pack / "train.txt").write_text("\n".join(names))
    ignore_everything_in(own_pack / "masks" / f"{names[1]}.png")
    options = ("batch_size=1", "loss.ohem=true", "loss.dice=1", "loss.lovasz=1", f"loss.class_weights={weights}")
    train_quietly(tiny_config(own_pack, tmp_path / "run", *options))
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 6
    assert losses.count(0.0) == 2  # that image, once an epoch
    assert all(math.isfinite(loss) for loss in losses)
    weights_after = tensors_in(tmp_path / "run" / "checkpoints")
    assert all(value.isfinite().all() for value in weights_after.values())
