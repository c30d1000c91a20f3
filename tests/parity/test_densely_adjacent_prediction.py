"""The layer against a loop written from the paper's equation, and against what others mistook it for."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from exfuse.layers import DapControlConv, DenselyAdjacentPrediction


def loop(y: Tensor, num_classes: int, window: int) -> Tensor:
    """r[c, i, j] = 1 / k^2 * sum_{a, b} y[(a k + b) K + c, i + a - k // 2, j + b - k // 2], zero outside the grid."""
    count, _, height, width = y.shape
    result = torch.zeros(count, num_classes, height, width, dtype=y.dtype)
    for n in range(count):
        for c in range(num_classes):
            for i in range(height):
                for j in range(width):
                    total = 0.0
                    for a in range(window):
                        for b in range(window):
                            row, column = i + a - window // 2, j + b - window // 2
                            if 0 <= row < height and 0 <= column < width:
                                total += float(y[n, (a * window + b) * num_classes + c, row, column])
                    result[n, c, i, j] = total / window**2
    return result


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 6)])
def test_equals_the_loop(window: int, size: tuple[int, int]) -> None:
    torch.manual_seed(window)
    y = torch.randn(2, 4 * window**2, *size, dtype=torch.float64)
    error = (DenselyAdjacentPrediction(4, window)(y) - loop(y, 4, window)).abs().max()
    assert error <= 1e-12


def test_group_a_b_is_read_at_its_own_neighbour() -> None:
    layer = DenselyAdjacentPrediction(num_classes=2, window=3)
    for a in range(3):
        for b in range(3):
            y = torch.zeros(1, 18, 5, 5, dtype=torch.float64)
            y[0, (a * 3 + b) * 2 + 1, 2, 2] = 9.0
            expected = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
            expected[0, 1, 2 - (a - 1), 2 - (b - 1)] = 1.0
            assert torch.equal(layer(y), expected)


def test_classes_are_not_mixed() -> None:
    y = torch.randn(1, 3 * 9, 6, 6, dtype=torch.float64)
    y.view(1, 9, 3, 6, 6)[:, :, 1] = 0
    assert DenselyAdjacentPrediction(3, 3)(y)[:, 1].abs().max() == 0


def test_it_is_not_the_mean_of_a_pixels_own_channels() -> None:
    y = torch.randn(1, 2 * 9, 8, 8, dtype=torch.float64)
    own_channels = y.view(1, 9, 2, 8, 8).mean(dim=1)
    as_often_published = F.avg_pool2d(F.pixel_shuffle(y, 3), 3)
    result = DenselyAdjacentPrediction(2, 3)(y)
    assert (result - own_channels).abs().max() > 0.1
    assert (result - as_often_published).abs().max() > 0.1


def test_bfloat16_is_summed_in_float32() -> None:
    y = torch.randn(1, 2 * 25, 9, 9, dtype=torch.bfloat16)
    result = DenselyAdjacentPrediction(2, 5)(y)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, DenselyAdjacentPrediction(2, 5)(y.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("num_classes", "window"), [(3, 2), (3, 0), (3, -1), (0, 3)])
def test_impossible_numbers_are_refused(num_classes: int, window: int) -> None:
    with pytest.raises(ValueError, match=f" {min(num_classes, window)}$"):
        DenselyAdjacentPrediction(num_classes, window)


def test_wrong_channel_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 \* 3 \* 3 .*\b26\b"):
        DenselyAdjacentPrediction(3, 3)(torch.zeros(1, 26, 4, 4))


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_convolution_and_the_averaging_are_one_plain_prediction_away_from_the_border(window: int) -> None:
    torch.manual_seed(0)
    classes, channels = 3, 4
    convolution = torch.nn.Conv2d(channels, classes * window**2, kernel_size=3, padding=1).double()
    dap = DenselyAdjacentPrediction(classes, window)
    reach, half = window + 2, window // 2
    kernel = torch.zeros(classes, channels, reach, reach, dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64)
    for a in range(window):
        for b in range(window):
            group = slice((a * window + b) * classes, (a * window + b + 1) * classes)
            kernel[:, :, a : a + 3, b : b + 3] += convolution.weight[group].detach() / window**2
            bias += convolution.bias[group].detach() / window**2
    x = torch.randn(1, channels, 12, 14, dtype=torch.float64)
    direct = torch.nn.functional.conv2d(x, kernel, bias, padding=reach // 2)
    inner = (..., slice(half, 12 - half), slice(half, 14 - half))
    torch.testing.assert_close(dap(convolution(x))[inner], direct[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_plain_prediction_takes_the_channels_of_the_averaging(window: int) -> None:
    plain = DapControlConv(4, window)
    assert plain.convolution.kernel_size == (window + 2, window + 2)
    y = torch.randn(2, 4 * window**2, 9, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = plain(y.bfloat16())
    assert (scores.shape, scores.dtype) == ((2, 4, 9, 7), torch.float32)
    scores.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in plain.parameters())
