"""What differs between learning one thing and another: a `Task`, and what it scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from exfuse.data.loader import AugmentedDataset


@dataclass(frozen=True)
class Evaluation:
    """What a network scored on the validation split.

    Attributes:
        score: What the best network has most of, 0 to 1.
        name: What the score is called.
        values: What is written down of it, the score included.
        save: Writes the network and its scores into a folder; told whether it was chosen for its score.
    """

    score: float
    name: str
    values: dict[str, float]
    save: Callable[[Path, bool], None]


class Task(Protocol):
    """What differs between learning one thing and another."""

    @property
    def best_folder(self) -> str:
        """Name of the folder, in that of the run, for the best network."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data: a run goes on with that it began with."""

    def samples(self) -> AugmentedDataset[Any]:
        """Returns the augmented training samples."""

    def loss(self, output: Any, targets: Tensor) -> Tensor:
        """Returns the scalar to minimise, given what the network gave for a batch and the batch's targets."""

    def weight(self, targets: Tensor) -> Tensor:
        """Returns the weight, a scalar, with which the loss of a piece of a batch enters the batch's."""

    def evaluate(self, model: nn.Module, step: int, check_stop: Callable[[], None]) -> Evaluation:
        """Scores the network on the validation split, shared between the processes.

        All processes call `check_stop` equally often, about once an image.
        """
