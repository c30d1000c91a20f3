"""One optimizer step, from a batch to updated weights."""

import math
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from exfuse.data.loader import Batch, step_seed
from exfuse.distributed import all_reduce_sum
from exfuse.models.preprocessing import normalize
from exfuse.training.nonfinite import skip_or_stop
from exfuse.training.optim import learning_rate_factor, set_learning_rate
from exfuse.training.run import Run
from exfuse.training.task import Task


def take_step(run: Run, task: Task, batch: Batch) -> float:
    """Takes one optimizer step: forward and backward passes over the pieces of a batch, then the update.

    A piece is weighted by its fraction of the total weight of the batch over all processes (see `Task.weight`). A step
    with a non-finite loss or gradient is not taken; see `exfuse.training.nonfinite`.

    Returns:
        The loss of the whole batch.
    """
    config, state, dist, network = run.config, run.state, run.dist, run.network
    factor = learning_rate_factor(state.step, run.total_steps, run.warmup_steps, config.optimizer.schedule)
    set_learning_rate(run.optimizers, factor)
    # Random numbers drawn by layers, such as dropout, are a function of the step, like the samples.
    torch.manual_seed(step_seed(config.seed, state.step, dist.rank))
    run.model.train()  # evaluation switches to eval mode
    buffers = [buffer.clone() for buffer in run.model.buffers()] if config.max_skipped_steps else []

    pieces = config.gradient_accumulation
    targets = batch.targets.to(dist.device, non_blocking=True).chunk(pieces)
    weights = torch.stack([task.weight(piece) for piece in targets]).double()
    fractions = (weights / all_reduce_sum(weights.sum(), dist).clamp(min=1e-12)).tolist()
    total = torch.zeros((), device=dist.device)
    for index, (images, target) in enumerate(zip(batch.images.chunk(pieces), targets, strict=True)):
        pixels = normalize(images.to(dist.device, non_blocking=True), config.data.image_mean, config.data.image_std)
        if config.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        is_last = index == pieces - 1
        with nullcontext() if is_last or not isinstance(network, DistributedDataParallel) else network.no_sync():
            with torch.autocast(dist.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                output = network(pixels)
            loss = task.loss(output, target) * fractions[index]
            (loss * dist.size).backward()  # DistributedDataParallel averages gradients, but their sum is needed
        total += loss.detach()
    value = float(all_reduce_sum(total, dist))

    norm = nn.utils.get_total_norm(
        [parameter.grad for parameter in run.model.parameters() if parameter.grad is not None]
    )
    if math.isfinite(value) and math.isfinite(norm):
        if config.optimizer.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(run.model.parameters(), config.optimizer.clip_grad_norm, norm)
        for optimizer in run.optimizers:
            optimizer.step()
        if run.ema is not None:
            run.ema.update(run.model, state.step)
        state.skipped = 0
    else:
        skip_or_stop(run, task, batch, value, float(norm), buffers)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    return value
