"""The interface of a task: the parts of training that differ between segmentation and classification."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from exfuse.data.loader import AugmentedDataset


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on the validation split.

    Attributes:
        score: The score by which the best network is chosen, 0 to 1.
        name: Name of the score.
        values: All values to record, including the score.
        save: Writes the network and its scores to a folder; the second argument is whether it was chosen as the best.
    """

    score: float
    name: str
    values: dict[str, float]
    save: Callable[[Path, bool], None]


class Task(Protocol):
    """The data, loss and evaluation of a training run."""

    @property
    def best_folder(self) -> str:
        """Name of the best network's folder within the run folder."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data; a run can only be resumed with the same data."""

    def samples(self) -> AugmentedDataset[Any]:
        """Returns the augmented training samples."""

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Returns the scalar loss of a piece of a batch, from the network's output and the targets."""

    def weight(self, targets: Tensor) -> Tensor:
        """Returns the scalar weight of a piece's loss in the loss of the whole batch."""

    def evaluate(self, model: nn.Module, step: int, check_stop: Callable[[], None]) -> Evaluation:
        """Scores the network on the validation split, which is divided among the processes.

        All processes call `check_stop` equally often, before each image or batch.
        """
