"""The policy for steps with a non-finite loss or gradient."""

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
    """Records a step with a non-finite loss or gradient, then stops the run or restores the model's buffers.

    Args:
        run: The run; at most `max_skipped_steps` consecutive steps are skipped.
        task: The task, whose data set names the files.
        batch: The batch of the step.
        loss: Loss of the batch.
        norm: Norm of the gradient.
        buffers: Copies of the model's buffers (batch-norm statistics) from before the step.

    Raises:
        TrainingError: If no more steps may be skipped.
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
        reason = describe_os_error(error, config.output)
        raise CheckpointError(
            f"{path}: could not be written ({reason}); at step {state.step + 1} the loss was {loss} for the files "
            f"{', '.join(files)}"
        ) from error
    if state.skipped >= config.max_skipped_steps:
        raise TrainingError(
            f"step {state.step + 1}: the loss is {loss} and the gradient norm {norm}; the step was not taken. "
            f"Its files and seed are in {path}. For a new run, try a smaller learning rate, a longer warm-up or "
            "clip_grad_norm; to continue this run without such steps, use --resume with max_skipped_steps=3"
        )
    state.skipped += 1
    with torch.no_grad():
        for buffer, before in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
