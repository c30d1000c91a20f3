"""What the decoder needs of a backbone, and the table of those that are known by name."""

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

Features = tuple[Tensor, Tensor, Tensor, Tensor]
FourInts = tuple[int, int, int, int]

STRIDES: FourInts = (4, 8, 16, 32)


class ConvNormPair(NamedTuple):
    """A convolution and the batch norm that is applied to its output, and to nothing else.

    Attributes:
        parent: The module that holds both.
        convolution: The attribute of the convolution.
        norm: The attribute of the norm.
    """

    parent: nn.Module
    convolution: str
    norm: str


class Backbone(nn.Module, ABC):
    """A feature extractor with four outputs at strides 4, 8, 16 and 32.

    A subclass sets `channels` in its constructor and defines `forward`. The rest has defaults that are safe for any
    network: it is left as it is when a model is folded, and checked to be itself again after saving and loading.
    """

    channels: FourInts
    """Channels of the four outputs."""

    is_restorable = False
    """Whether the state dict holds all that the backbone computes with; otherwise loading builds it anew."""

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Maps normalised images `(N, 3, H, W)`, H and W multiples of 32, to x2, x3, x4, x5."""

    def conv_norm_pairs(self) -> Iterator[ConvNormPair] | None:
        """Returns all convolutions with their batch norms, for folding; None leaves the backbone as it is.

        `pairs_by_name` finds those of modules that name them `conv1` and `bn1`, or hold them in a `nn.Sequential`. A
        norm that is in no pair makes `fold` fail.
        """
        return None


def pairs_by_name(module: nn.Module) -> Iterator[ConvNormPair]:
    """Yields the pairs that names tell: `convN` with `bnN`, and neighbours in a `nn.Sequential`.

    Backbones in the module are left out; they answer for themselves.
    """
    for child in module.children():
        if not isinstance(child, Backbone):
            yield from pairs_by_name(child)
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        names = list(children)
        candidates = list(itertools.pairwise(names))
    else:
        candidates = [(name, f"bn{found[1]}") for name in children if (found := re.fullmatch(r"conv(\d+)", name))]
    for convolution, norm in candidates:
        if isinstance(children[convolution], nn.Conv2d) and isinstance(children.get(norm), nn.BatchNorm2d):
            yield ConvNormPair(module, convolution, norm)


BACKBONES: dict[str, Callable[[], Backbone]] = {}


def register_backbone(name: str, make: Callable[[], Backbone]) -> None:
    """Makes a backbone known by a name, so that `exfuse_NAME` and `gcn_NAME` are models.

    Args:
        name: Lower-case letters, digits and underscores; not taken yet.
        make: Builds it with random weights.

    Raises:
        ValueError: If the name is taken or has other characters.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"a backbone's name has lower-case letters, digits and underscores, got {name!r}")
    if name in BACKBONES:
        raise ValueError(f"there is a backbone {name!r} already")
    BACKBONES[name] = make
