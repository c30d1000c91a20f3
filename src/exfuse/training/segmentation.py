"""Training a segmentation network: one loop, from top to bottom."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exfuse.data.augment import Augmentation
from exfuse.data.stream import AugmentedDataset, Batch, SampleOrder, training_loader
from exfuse.distributed import any_rank, copy_from_first, process_group, sum_over_ranks, wait_for_all
from exfuse.errors import TrainingError
from exfuse.evaluation.evaluate import EvaluationReport, count_confusion, describe_protocol
from exfuse.evaluation.report import model_card, write_run_report
from exfuse.inference.predictor import Predictor
from exfuse.inference.preprocessing import normalize
from exfuse.models.pretrained import load_pretrained, save_pretrained
from exfuse.training.checkpoint import load_checkpoint, save_checkpoint
from exfuse.training.config import TrainingConfig, dump_config
from exfuse.training.log import RunLog, StepClock, read_records
from exfuse.training.optim import learning_rate_factor, set_learning_rate
from exfuse.training.run import CONFIG_FILE, Run, check_output, model_info, set_up


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and can go on
    """The run stopped at the user's wish after saving a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train(config: TrainingConfig, resume: bool, console: Console) -> EvaluationReport:
    """Trains a network and leaves a run folder: config, records, checkpoints, the best and the last model, a report.

    Under torchrun every process calls this; the samples of each step are the same for any number of processes.

    Args:
        config: The recipe.
        resume: Go on from the latest checkpoint in the run folder.
        console: Where progress and tables go.

    Returns:
        The scores of the best model on the validation split.

    Raises:
        ConfigError: If the configuration cannot be run, or the run folder holds another run.
        DataError: If the data is bad; before training starts.
        CheckpointError: If a checkpoint cannot be written or, resuming, read.
        TrainingError: If the loss is no longer finite.
        Interrupted: After Ctrl-C, once a checkpoint is saved.
    """
    with process_group() as ranks:
        console = console if ranks.is_first else Console(quiet=True)
        check_output(config, resume)
        wait_for_all(ranks)  # nobody writes before all have looked
        run = set_up(config, ranks, console)
        if resume:
            average = run.average.model if run.average else None
            run.state = load_checkpoint(run.checkpoints, run.model, average, run.optimizers)
        elif ranks.is_first:
            config.output.mkdir(parents=True, exist_ok=True)
            (config.output / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
        steps = run.steps_of_epochs[-1]
        with RunLog(config.output, run.state.step, steps, console, ranks.is_first) as log:
            _loop(run, log)
        if ranks.is_first:
            write_run_report(config.output, run.val.dataset, read_records(config.output))
        wait_for_all(ranks)
        _, info = load_pretrained(config.output / "model")
        return EvaluationReport.from_json(info.metrics)


def _loop(run: Run, log: RunLog) -> None:
    """Takes the remaining steps, evaluating after every n-th epoch."""
    config, state = run.config, run.state
    last_step = run.steps_of_epochs[-1]
    evaluate_after = {*run.steps_of_epochs[config.evaluate_every - 1 :: config.evaluate_every], last_step}
    clock = StepClock()
    with _stop_requests() as stop:
        for batch in _batches(run, last_step):
            loss = _take_step(run, batch)
            state.step += 1
            log.advance(f"loss {loss:.3f}  {clock.tick():.2f} s/step")
            if state.step % config.log_every == 0:
                rate = run.optimizers[0].param_groups[-1]["lr"]
                epoch = state.step * config.batch_size / len(run.train.dataset)
                log.record("train", state.step, epoch=epoch, loss=loss, lr=rate, seconds_per_step=clock.mean())
            if state.step in evaluate_after:
                _evaluate_and_keep(run, log, is_last=state.step == last_step)
                clock = StepClock()
            stopping = any_rank(stop.requested, run.ranks)
            if stopping or state.step % config.checkpoint_every == 0 or state.step == last_step:
                _save(run)
            if stopping and state.step < last_step:
                wait_for_all(run.ranks)  # the first process may still be writing
                raise Interrupted(state.step)


def _batches(run: Run, last_step: int) -> Iterator[Batch]:
    config, data = run.config, run.config.data
    classes = run.train.dataset.classes
    red, green, blue = (round(255 * value) for value in data.image_mean)
    augmentation = Augmentation(
        crop_size=data.crop_size,
        scale=data.scale,
        flip=data.flip,
        brightness=data.brightness,
        contrast=data.contrast,
        saturation=data.saturation,
        fill=(red, green, blue),
        ignore_index=classes.ignore_index,
    )
    order = SampleOrder(
        len(run.train.dataset),
        config.batch_size,
        run.state.step,
        last_step,
        config.seed,
        run.ranks.rank,
        run.ranks.size,
    )
    yield from training_loader(AugmentedDataset(run.train.dataset, augmentation, config.seed), order, data.workers)


def _take_step(run: Run, batch: Batch) -> float:
    """Takes one optimizer step and returns the loss, the mean over the processes."""
    config, state = run.config, run.state
    schedule = config.optimizer
    factor = learning_rate_factor(state.step, run.steps_of_epochs[-1], schedule.warmup_steps, schedule.schedule)
    set_learning_rate(run.optimizers, factor)
    run.model.train()
    total = torch.zeros((), device=run.ranks.device)
    chunks = list(zip(batch.images.chunk(config.accumulation), batch.masks.chunk(config.accumulation), strict=True))
    for index, (images, masks) in enumerate(chunks):
        is_last = index == len(chunks) - 1
        wait = (
            run.network.no_sync() if isinstance(run.network, DistributedDataParallel) and not is_last else nullcontext()
        )
        with wait:
            loss = _forward(run, images, masks) / len(chunks)
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    value = float(sum_over_ranks(total, run.ranks)) / run.ranks.size
    if value != value or value in (float("inf"), float("-inf")):
        raise TrainingError(
            f"step {state.step}: the loss is {value}; the weights are those before this step. Samples (epoch, index): "
            f"{batch.keys.tolist()}, seed {config.seed}. A smaller learning rate, warm-up or gradient_clip may help"
        )
    if config.optimizer.gradient_clip:
        nn.utils.clip_grad_norm_(run.model.parameters(), config.optimizer.gradient_clip)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.model, state.step)
    return value


def _forward(run: Run, images: Tensor, masks: Tensor) -> Tensor:
    config, device = run.config, run.ranks.device
    pixels = normalize(images.to(device, non_blocking=True), config.data.image_mean, config.data.image_std)
    if config.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        output = run.network(pixels)
    return run.loss(output.logits, output.auxiliary_logits, masks.to(device, non_blocking=True).long())


def _evaluate_and_keep(run: Run, log: RunLog, is_last: bool) -> None:
    """Scores the network (its average, if kept) on the validation split; writes it if it is the best or the last."""
    config, state = run.config, run.state
    model = run.average.model if run.average else run.model
    copy_from_first(model, run.ranks)  # batch-norm statistics are each process's own
    info = model_info(config, run.train.dataset)
    predictor = Predictor(model, info, precision=config.precision, device=run.ranks.device)
    matrix = count_confusion(predictor, run.val.dataset, run.ranks, Console(quiet=True))
    protocol = describe_protocol(predictor, run.val.dataset, run.val.scan.fingerprint)
    report = EvaluationReport(matrix, info.class_names, protocol | {"step": state.step})
    log.record(
        "val",
        state.step,
        epoch=state.step * config.batch_size / len(run.train.dataset),
        mean_iou=matrix.mean_iou(),
        pixel_accuracy=matrix.pixel_accuracy(),
        mean_accuracy=matrix.mean_accuracy(),
    )
    is_best = state.best_step == 0 or matrix.mean_iou() > state.best_mean_iou
    if is_best:
        state.best_mean_iou, state.best_step = matrix.mean_iou(), state.step
    log.say(f"step {state.step}: val mIoU {matrix.mean_iou():.4f}{' (best so far)' if is_best else ''}")
    if run.ranks.is_first:
        measured = replace(info, metrics=report.to_json())
        for folder, wanted in (("model", is_best), ("model_last", is_last)):
            if wanted:
                save_pretrained(config.output / folder, model, measured, model_card(measured, report))


def _save(run: Run) -> None:
    if run.ranks.is_first:
        average = run.average.model if run.average else None
        save_checkpoint(run.checkpoints, run.model, average, run.optimizers, run.state)


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Lets the first Ctrl-C only set a flag, so that the step under way is finished; a second one stops at once."""
    stop = _Stop()
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
