"""Semantic supervision (ExFuse): pre-training with an auxiliary classifier on each stage of the backbone.

The auxiliary heads make the early stages learn semantics. For segmentation, either the heads are dropped, or their
convolutions are kept and the decoder reads their outputs. The paper's figure 3 draws a head as two 3 x 3 convolutions,
global pooling and two fully connected layers, without widths, norms or activations. Those are our reading: each
convolution has as many channels as the stage, at most `MAX_HEAD_WIDTH`, followed by batch norm and ReLU; the first
fully connected layer has `HEAD_HIDDEN_WIDTH` outputs, followed by ReLU.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.models.backbones.base import Backbone, ConvNormPair, Features, FourInts, pairs_by_name

MAX_HEAD_WIDTH = 512
HEAD_HIDDEN_WIDTH = 512
STAGES = ("res2", "res3", "res4", "res5")

FourBools = tuple[bool, bool, bool, bool]


class HeadConvolutions(nn.Module):
    """Two 3 x 3 convolutions, each with batch norm and ReLU: the part of a head that segmentation may keep.

    Args:
        in_channels: Channels C of the stage.
        width: Channels of both convolutions.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, width, H, W)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class SupervisedBackbone(Backbone):
    """A backbone whose stages are read through the convolutions of their auxiliary heads.

    Args:
        body: The backbone.
        with_head: Which of the stages res-2 to res-5 have a head; a stage without one is read directly.
    """

    def __init__(self, body: Backbone, with_head: FourBools = (True, True, True, True)) -> None:
        super().__init__()
        self.body = body
        self.is_restorable = body.is_restorable
        c2, c3, c4, c5 = (
            min(channels, MAX_HEAD_WIDTH) if head else channels
            for channels, head in zip(body.channels, with_head, strict=True)
        )
        self.channels: FourInts = (c2, c3, c4, c5)
        self.heads = nn.ModuleList(
            HeadConvolutions(channels, width) if head else nn.Identity()
            for channels, width, head in zip(body.channels, self.channels, with_head, strict=True)
        )

    def forward(self, images: Tensor) -> Features:
        """Maps normalised images `(N, 3, H, W)` to four features at strides 4, 8, 16 and 32."""
        return self.read(self.body(images))

    def read(self, stages: Features) -> Features:
        """Applies each stage's head, if it has one, to the outputs of the four stages."""
        x2, x3, x4, x5 = (head(x) for head, x in zip(self.heads, stages, strict=True))
        return x2, x3, x4, x5

    def conv_norm_pairs(self) -> Iterator[ConvNormPair]:
        """Returns the pairs of the heads, and those of the body if it declares any."""
        return itertools.chain(pairs_by_name(self), self.body.conv_norm_pairs() or ())


def body_of(backbone: Backbone) -> Backbone:
    """Returns a backbone without its auxiliary heads, if it has any."""
    return backbone.body if isinstance(backbone, SupervisedBackbone) else backbone


class ClassifierOutput(NamedTuple):
    """The classifier's output.

    Attributes:
        logits: Class scores of the last stage, `(N, K)`, float32.
        auxiliary_logits: Class scores of each auxiliary head, `(N, K)`, float32, in the order res-2 to res-5.
    """

    logits: Tensor
    auxiliary_logits: tuple[Tensor, ...]


class SemanticSupervisionClassifier(nn.Module):
    """A backbone with the usual classifier on its last stage and auxiliary heads on selected stages.

    A head consists of two 3 x 3 convolutions, global average pooling and two linear layers with ReLU between them.

    Args:
        body: The backbone.
        num_classes: Number of classes K.
        with_head: Which of the stages res-2 to res-5 have a head; with none it is plain pre-training.
        head_hidden_width: Outputs of a head's first linear layer; 0 omits that layer and its ReLU.
    """

    def __init__(
        self,
        body: Backbone,
        num_classes: int,
        with_head: FourBools = (True, True, True, True),
        head_hidden_width: int = HEAD_HIDDEN_WIDTH,
    ) -> None:
        super().__init__()
        self.backbone = SupervisedBackbone(body, with_head)
        self.with_head = with_head
        self.fc = nn.Linear(body.channels[-1], num_classes)
        self.auxiliary_fc = nn.ModuleList(
            _head_classifier(channels, head_hidden_width, num_classes) if head else nn.Identity()
            for channels, head in zip(self.backbone.channels, with_head, strict=True)
        )

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Classifies normalised images `(N, 3, H, W)`; returns the scores of the heads in eval mode as well."""
        stages = self.backbone.body(images)
        features = self.backbone.read(stages)
        auxiliary = tuple(
            classify(_pool(feature)).float()
            for classify, feature, head in zip(self.auxiliary_fc, features, self.with_head, strict=True)
            if head
        )
        return ClassifierOutput(self.fc(_pool(stages[-1])).float(), auxiliary)


def _head_classifier(in_features: int, hidden_width: int, num_classes: int) -> nn.Module:
    if hidden_width == 0:
        return nn.Linear(in_features, num_classes)
    return nn.Sequential(nn.Linear(in_features, hidden_width), nn.ReLU(), nn.Linear(hidden_width, num_classes))


def _pool(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))
