"""The interface of a backbone, and the table of registered backbones."""

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from exfuse.errors import ConfigError

Features = tuple[Tensor, Tensor, Tensor, Tensor]
FourInts = tuple[int, int, int, int]

STRIDES: FourInts = (4, 8, 16, 32)


class ConvNormPair(NamedTuple):
    """A convolution and the batch norm applied to its output; neither is used elsewhere.

    Attributes:
        parent: The module that contains both.
        convolution: Attribute name of the convolution.
        norm: Attribute name of the batch norm.
    """

    parent: nn.Module
    convolution: str
    norm: str


class Backbone(nn.Module, ABC):
    """A feature extractor with four outputs at strides 4, 8, 16 and 32.

    A subclass sets `channels`, on the class or in its constructor, and defines `forward`. `conv_norm_pairs` and
    `is_restorable` are optional: without the first, `fold` leaves the backbone's batch norms in place; without the
    second, training begins with a round trip of saving and loading.
    """

    channels: FourInts
    """Channels of the four outputs."""

    is_restorable = False
    """Whether all tensors that affect the outputs are parameters or persistent buffers.

    If false, a run checks first that the network is the same when saved and loaded, and loading takes longer.
    """

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Maps normalised images `(N, 3, H, W)`, H and W multiples of 32, to x2, x3, x4, x5 at strides 4 to 32."""

    def conv_norm_pairs(self) -> Iterator[ConvNormPair] | None:
        """Returns all convolutions with their batch norms, for folding; None excludes the backbone from folding.

        `pairs_by_name(self)` finds pairs that are named `convN` and `bnN`, N a number, or are neighbours in an
        `nn.Sequential`; yield others as `ConvNormPair(module, "conv_a", "norm_a")`. A batch norm outside any pair
        makes `fold` raise an error.
        """
        return None


def pairs_by_name(module: nn.Module) -> Iterator[ConvNormPair]:
    """Yields the pairs that can be recognised: attributes `convN` and `bnN`, and neighbours in an `nn.Sequential`.

    Backbones inside the module are skipped, because they declare their own pairs.
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
    """Registers a backbone, which makes `exfuse_NAME` and `gcn_NAME` available as models.

    Args:
        name: An unused name of lower-case letters, digits and underscores.
        make: Builds the backbone with random weights.

    Raises:
        ConfigError: If the name is in use or contains other characters.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(f"a backbone's name consists of lower-case letters, digits and underscores, got {name!r}")
    if name in BACKBONES:
        raise ConfigError(f"backbone {name!r} is already registered; choose another name")
    BACKBONES[name] = make
