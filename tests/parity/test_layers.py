"""The other layers against slow, independent restatements in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exfuse.layers import (
    BoundaryRefinement,
    ChannelResolutionEmbedding,
    GlobalConvolution,
    LearnedUpsample,
    SemanticEmbeddingBranch,
)


def dense_kernel(block: GlobalConvolution) -> tuple[Tensor, Tensor]:
    """Returns the one g x g kernel and bias that the block amounts to when its first convolutions have no bias."""
    (tall1, flat1), (flat2, tall2) = block.tall_then_flat, block.flat_then_tall
    first = torch.einsum("omh,mcv->ocvh", flat1.weight[:, :, 0, :], tall1.weight[:, :, :, 0])
    second = torch.einsum("omv,mch->ocvh", tall2.weight[:, :, :, 0], flat2.weight[:, :, 0, :])
    return first + second, flat1.bias + tall2.bias


@pytest.mark.parametrize("kernel_size", [1, 3, 7, 11, 15])
def test_global_convolution_with_zero_first_bias_is_one_dense_convolution(kernel_size: int) -> None:
    torch.manual_seed(kernel_size)
    block = GlobalConvolution(5, 4, kernel_size).double()
    for branch in (block.tall_then_flat, block.flat_then_tall):
        nn.init.zeros_(branch[0].bias)
        nn.init.normal_(branch[1].bias)
    x = torch.randn(2, 5, 9, 13, dtype=torch.float64)
    with torch.no_grad():
        weight, bias = dense_kernel(block)
        expected = F.conv2d(x, weight, bias, padding=kernel_size // 2)
        assert (block(x) - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(("kernel_size", "weights"), [(3, 260_694), (7, 608_286)])
def test_global_convolution_has_the_weights_that_gcn_s_paper_counts(kernel_size: int, weights: int) -> None:
    block = GlobalConvolution(2048, 21, kernel_size)
    assert sum(value.numel() for name, value in block.named_parameters() if name.endswith("weight")) == weights


def test_global_convolution_has_no_nonlinearity() -> None:
    block = GlobalConvolution(3, 4, 7).double()
    x, y = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x + 2 * y) - block(torch.zeros_like(x)), _linear_part(block, x, y))


def _linear_part(block: GlobalConvolution, x: Tensor, y: Tensor) -> Tensor:
    offset = block(torch.zeros_like(x))
    return (block(x) - offset) + 2 * (block(y) - offset)


@pytest.mark.parametrize("kernel_size", [0, 2, -3])
def test_global_convolution_refuses_even_kernels(kernel_size: int) -> None:
    with pytest.raises(ValueError, match=rf"\bkernel_size\b.* {kernel_size}$"):
        GlobalConvolution(3, 4, kernel_size)


def test_boundary_refinement_is_a_residual_of_two_convolutions() -> None:
    block = BoundaryRefinement(3).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    inner = F.conv2d(x, block.conv1.weight, block.conv1.bias, padding=1).clamp(min=0)
    expected = x + F.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
    assert (block(x) - expected).abs().max() <= 1e-12


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resampling between pixel centres, pixel by pixel, the border repeated."""
    result = torch.zeros(*x.shape[:2], height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            row = min(max((i + 0.5) * x.shape[2] / height - 0.5, 0.0), x.shape[2] - 1.0)
            column = min(max((j + 0.5) * x.shape[3] / width - 0.5, 0.0), x.shape[3] - 1.0)
            top, left = int(row), int(column)
            bottom, right = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
            down, across = row - top, column - left
            upper = x[:, :, top, left] * (1 - across) + x[:, :, top, right] * across
            lower = x[:, :, bottom, left] * (1 - across) + x[:, :, bottom, right] * across
            result[:, :, i, j] = upper * (1 - down) + lower * down
    return result


@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_semantic_embedding_is_the_product_over_all_higher_levels(normalize: bool, width: int | None) -> None:
    torch.manual_seed(int(normalize))
    branch = SemanticEmbeddingBranch(4, (6, 8, 10), normalize, width).double().eval()
    low = torch.randn(2, 4, 12, 16, dtype=torch.float64)
    highs = [torch.randn(2, c, s, t, dtype=torch.float64) for c, s, t in ((6, 6, 8), (8, 3, 4), (10, 2, 2))]
    expected = low
    for embedding, high in zip(branch.embeddings, highs, strict=True):
        if width is not None:
            high = torch.einsum("nchw,dc->ndhw", high, embedding[0].weight[:, :, 0, 0])
            embedding = embedding[1:] if normalize else embedding[1]
        if normalize:
            convolution, norm = embedding
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            factor = F.conv2d(high, convolution.weight, padding=1)
            deviation = (norm.running_var + norm.eps).sqrt()[:, None, None]
            factor = (factor - norm.running_mean[:, None, None]) / deviation
            factor = factor * norm.weight[:, None, None] + norm.bias[:, None, None]
        else:
            factor = F.conv2d(high, embedding.weight, embedding.bias, padding=1)
        expected = expected * bilinear(factor, 12, 16)
    assert (branch(low, *highs) - expected).abs().max() <= 1e-12


def test_semantic_embedding_takes_as_many_levels_as_it_was_built_for() -> None:
    branch = SemanticEmbeddingBranch(4, (6,))
    low, high = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)
    with pytest.raises(ValueError, match="zip"):
        branch(low, high, high)
    with pytest.raises(ValueError, match="level"):
        SemanticEmbeddingBranch(4, ())
    with pytest.raises(ValueError, match=r"\bwidth\b.* 0$"):
        SemanticEmbeddingBranch(4, (6,), width=0)


def test_semantic_embedding_with_norm_starts_close_to_the_identity() -> None:
    torch.manual_seed(0)
    low, high = torch.rand(4, 8, 16, 16), torch.rand(4, 32, 8, 8)
    change = SemanticEmbeddingBranch(8, (32,)).train()(low, high) - low
    assert change.std() < 0.2 * low.std()
    assert change.abs().max() > 0


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_channel_resolution_embedding_moves_channels_to_pixels_by_index(scale: int) -> None:
    layer = ChannelResolutionEmbedding(5, 3, scale).double()
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    channels = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
    expected = torch.empty(2, 3, 4 * scale, 6 * scale, dtype=torch.float64)
    for d in range(3):
        for i in range(4 * scale):
            for j in range(6 * scale):
                source = d * scale * scale + (i % scale) * scale + j % scale
                expected[:, d, i, j] = channels[:, source, i // scale, j // scale]
    assert (layer(x) - expected).abs().max() <= 1e-12
    with pytest.raises(ValueError, match=r"\bscale\b.* 0$"):
        ChannelResolutionEmbedding(5, 3, 0)


@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 3), (2, 6)])
def test_deconvolution_starts_as_bilinear_interpolation(in_channels: int, out_channels: int) -> None:
    layer = LearnedUpsample(in_channels, out_channels).double()
    x = torch.randn(1, in_channels, 5, 7, dtype=torch.float64)
    expected = bilinear(x, 10, 14).repeat(1, out_channels // in_channels, 1, 1)
    difference = (layer(x) - expected)[:, :, 1:-1, 1:-1]
    assert difference.abs().max() <= 1e-12


def test_deconvolution_between_unrelated_widths_keeps_the_variance() -> None:
    torch.manual_seed(0)
    layer = LearnedUpsample(48, 99)
    constant = torch.randn(64, 48, 1, 1).expand(64, 48, 6, 6)
    assert 0.9 < layer(constant)[:, :, 3, 3].std() < 1.1
