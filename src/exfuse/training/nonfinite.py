"""The policy for steps whose loss or gradient is not finite."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from exfuse.atomic_io import atomic_write_text, describe_os_error
from exfuse.data.loader import Batch
from exfuse.errors import CheckpointError, TrainingError
from exfuse.training.run import Run
from exfuse.training.task import Task

NONFINITE_FILE = "not_finite_{rank}.json"


def skip_or_stop(run: Run, task: Task, batch: Batch, loss: float, norm: float, buffers: Sequence[Tensor]) -> None:
    """Records a step whose loss or gradient is not finite; stops the run, or undoes what the step has changed.

    Args:
        run: At the step; at most `max_skipped_steps` in a row are left out.
        task: What is learnt.
        batch: That of the step; its files are recorded.
        loss: Of the batch.
        norm: Of the gradient.
        buffers: Copies of the model's buffers (batch-norm statistics) from before the step.

    Raises:
        TrainingError: If no more steps may be left out.
        CheckpointError: If the record cannot be written.
    """
    config, state, dataset = run.config, run.state, task.samples().dataset
    samples = [tuple(key) for key in batch.keys.tolist()]
    files = [str(dataset.image_path(index)) for _, index in samples]
    record = {
        "step": state.step + 1,
        "loss": str(loss),
        "gradient_norm": str(norm),
        "seed": config.seed,
        "samples": samples,
        "files": files,
    }
    path = config.output / NONFINITE_FILE.format(rank=run.dist.rank)
    try:
        atomic_write_text(path, json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        why = describe_os_error(error, config.output)
        raise CheckpointError(
            f"{path}: could not be written ({why}); it was to say of which files the loss at step"
            f" {state.step + 1} is {loss}: {', '.join(files)}"
        ) from error
    if state.skipped >= config.max_skipped_steps:
        raise TrainingError(
            f"step {state.step + 1}: the loss is {loss}, the gradient's norm {norm}; the weights are those before it. "
            f"Its files and seed are in {path}. A smaller learning rate, a longer warm-up or "
            "clip_grad_norm may help a new run; --resume with max_skipped_steps=3 leaves such steps out"
        )
    state.skipped += 1
    with torch.no_grad():
        for buffer, before in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
