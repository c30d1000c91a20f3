"""ResNet and ResNeXt feature extractors; layer rearrangement (ExFuse) only changes the tuple of depths.

Parameters have the names of torchvision and timm, so public ImageNet state dicts load without conversion.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.models.backbones.base import Backbone, ConvNormPair, Features, FourInts, pairs_by_name, register_backbone


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al., CVPR 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, width_per_group: int) -> None:
        super().__init__()
        if groups != 1 or width_per_group != 64:
            raise ValueError("BasicBlock has no grouped form: use groups=1, width_per_group=64")
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, width, H / stride, W / stride)`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, grouped 3 x 3 and 1 x 1 convolutions with a shortcut; the 3 x 3 convolution has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, groups: int, width_per_group: int) -> None:
        super().__init__()
        inner = width * width_per_group // 64 * groups
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, 4 * width, H / stride, W / stride)`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


class ResNet(Backbone):
    """A ResNet or ResNeXt without its classifier.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: Number of blocks in each of the stages res-2 to res-5.
        widths: Base width of the blocks in each stage; a stage has `width * block.expansion` output channels.
        stem_channels: Channels of the 7 x 7 convolution.
        groups: Groups of the 3 x 3 convolution (the cardinality of ResNeXt).
        width_per_group: Channels of one group in a stage of base width 64.

    Raises:
        ValueError: If a stage has no block, or `BasicBlock` is combined with groups.
    """

    is_restorable = True

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: FourInts,
        widths: FourInts = (64, 128, 256, 512),
        stem_channels: int = 64,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        if min(depths) < 1:
            raise ValueError(f"every stage needs at least one block, got depths {tuple(depths)}")
        self.conv1 = nn.Conv2d(3, stem_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages, in_channels = [], stem_channels
        for level, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if level > 0 and index == 0 else 1
                blocks.append(block(in_channels, width, stride, groups, width_per_group))
                in_channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels: FourInts = tuple(width * block.expansion for width in widths)  # type: ignore[assignment]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:
        """Maps normalised images `(N, 3, H, W)` to the outputs of stages res-2 to res-5."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        x2 = self.layer1(x)
        x3 = self.layer2(x2)
        x4 = self.layer3(x3)
        x5 = self.layer4(x4)
        return x2, x3, x4, x5

    def conv_norm_pairs(self) -> Iterator[ConvNormPair]:
        """See `Backbone`."""
        return pairs_by_name(self)


def tiny() -> ResNet:
    """One block per stage and a quarter of ResNet-18's width, for tests and the demo."""
    return ResNet(BasicBlock, (1, 1, 1, 1), widths=(16, 32, 64, 128), stem_channels=16)


def resnet18() -> ResNet:
    """ResNet-18."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> ResNet:
    """ResNet-34."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet34_rearranged() -> ResNet:
    """ResNet-34 with its 16 blocks distributed evenly, as the paper's layer rearrangement does for ResNeXt-101.

    A block costs the same in every stage, so the number of multiply-adds stays nearly the same.
    """
    return ResNet(BasicBlock, (4, 4, 4, 4))


def resnet50() -> ResNet:
    """ResNet-50 with the stride in the 3 x 3 convolution, as in torchvision."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def resnet101() -> ResNet:
    """ResNet-101 with the stride in the 3 x 3 convolution."""
    return ResNet(Bottleneck, (3, 4, 23, 3))


def resnext50() -> ResNet:
    """ResNeXt-50 32x4d."""
    return ResNet(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4)


def resnext101() -> ResNet:
    """ResNeXt-101 32x4d."""
    return ResNet(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=4)


def resnext101_rearranged() -> ResNet:
    """ResNeXt-101 32x4d with the paper's layer rearrangement: {3, 4, 23, 3} becomes {8, 8, 9, 8}.

    A block costs nearly the same in every stage, so at equal widths the number of multiply-adds hardly changes.
    """
    return ResNet(Bottleneck, (8, 8, 9, 8), groups=32, width_per_group=4)


def resnext131() -> ResNet:
    """ResNeXt-131 32x4d, the paper's largest backbone.

    We do not know how the paper distributes the 43 blocks; {8, 8, 19, 8} is our reading.
    """
    return ResNet(Bottleneck, (8, 8, 19, 8), groups=32, width_per_group=4)


for _make in (
    tiny,
    resnet18,
    resnet34,
    resnet34_rearranged,
    resnet50,
    resnet101,
    resnext50,
    resnext101,
    resnext101_rearranged,
    resnext131,
):
    register_backbone(_make.__name__, _make)
