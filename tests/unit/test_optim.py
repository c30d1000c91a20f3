"""Learning rates, parameter groups, Muon and the moving average of the weights."""

import copy
import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from exfuse.models.exfuse import ExFuse
from exfuse.models.registry import create_model
from exfuse.training.muon import Muon, orthogonalize
from exfuse.training.optim import (
    ExponentialMovingAverage,
    OptimizerName,
    build_optimizers,
    learning_rate_factor,
    set_learning_rate,
)

OPTIMIZER_NAMES = get_args(OptimizerName)


@pytest.fixture
def network() -> ExFuse:
    torch.manual_seed(0)
    return create_model("exfuse_tiny", num_classes=3, decoder="stride4", decoder_width=8)


def optimizers_of(network: ExFuse, name: OptimizerName, momentum: float = 0.9) -> tuple[Optimizer, ...]:
    return build_optimizers(network, name, 0.1, 0.25, 0.02, momentum)


def groups_of(optimizers: tuple[Optimizer, ...]) -> list[dict[str, object]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 5),
        (1, 2 / 5),
        (2, 3 / 5),
        (3, 4 / 5),
        (4, 1.0),
        (9, 0.5358867312681466),  # (1 - 5 / 10) ** 0.9
        (12, 0.23492378861760374),  # (1 - 8 / 10) ** 0.9
        (13, 0.12589254117941673),  # (1 - 9 / 10) ** 0.9
        (14, 0.0),
    ],
)
def test_the_polynomial_schedule_warms_up_and_falls_to_zero(step: int, expected: float) -> None:
    assert learning_rate_factor(step, 14, 4, "polynomial") == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 5),
        (3, 4 / 5),
        (4, 1.0),
        (9, 0.5),  # cos(pi / 2) = 0
        (12, 0.09549150281252627),  # (1 - cos 36 degrees) / 2
        (13, 0.024471741852423234),  # (1 - cos 18 degrees) / 2
        (14, 0.0),
    ],
)
def test_the_cosine_schedule_warms_up_and_falls_to_zero(step: int, expected: float) -> None:
    assert learning_rate_factor(step, 14, 4, "cosine") == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ["polynomial", "cosine"])
def test_a_schedule_without_warm_up_starts_at_the_peak(schedule: str) -> None:
    assert learning_rate_factor(0, 10, 0, schedule) == 1.0


@pytest.mark.parametrize("schedule", ["polynomial", "cosine"])
def test_a_warm_up_longer_than_the_run_never_reaches_the_peak(schedule: str) -> None:
    assert [learning_rate_factor(step, 3, 9, schedule) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("schedule", ["polynomial", "cosine"])
def test_after_the_warm_up_the_learning_rate_only_falls_and_stays_above_zero(schedule: str) -> None:
    factors = [learning_rate_factor(step, 100, 10, schedule) for step in range(10, 100)]
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))
    assert factors[-1] > 0


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_every_parameter_is_in_exactly_one_group(network: ExFuse, name: OptimizerName) -> None:
    grouped = [id(parameter) for group in groups_of(optimizers_of(network, name)) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_weights_are_decayed_and_biases_and_normalisation_are_not(network: ExFuse, name: OptimizerName) -> None:
    spared = {id(value) for key, value in network.named_parameters() if key.endswith("bias")}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    spared |= {id(norm.weight) for norm in norms}
    assert len(spared) > len(norms) > 10
    for group in groups_of(optimizers_of(network, name)):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.0 if id(parameter) in spared else 0.02)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_the_backbone_learns_at_its_own_rate(network: ExFuse, name: OptimizerName) -> None:
    in_backbone = {id(value) for key, value in network.named_parameters() if key.startswith("backbone.")}
    assert 0 < len(in_backbone) < len(list(network.parameters()))
    for group in groups_of(optimizers_of(network, name)):
        for parameter in group["params"]:
            expected = pytest.approx(0.025 if id(parameter) in in_backbone else 0.1)
            assert (group["lr"], group["peak_lr"]) == (expected, expected)


def test_muon_takes_the_kernels_of_convolutions_and_adamw_the_rest(network: ExFuse) -> None:
    muon, adamw = optimizers_of(network, "muon", momentum=0.7)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    kernels = {id(module.weight) for module in network.modules() if isinstance(module, nn.Conv2d)}
    assert {id(parameter) for group in muon.param_groups for parameter in group["params"]} == kernels
    assert {group["momentum"] for group in muon.param_groups} == {0.7}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_the_given_momentum(network: ExFuse, momentum: float) -> None:
    (sgd,) = optimizers_of(network, "sgd", momentum)
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(momentum, False)}


def test_a_first_step_of_sgd_is_the_one_on_paper(network: ExFuse) -> None:
    before = copy.deepcopy(network)
    (sgd,) = optimizers_of(network, "sgd", momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    sgd.step()
    for (name, old), new in zip(before.named_parameters(), network.parameters(), strict=True):
        rate = 0.025 if name.startswith("backbone.") else 0.1
        gradient = 1 + (0.02 * old if old.ndim > 1 else 0.0)
        torch.testing.assert_close(new, old - rate * gradient)  # momentum has nothing to add yet


def test_a_first_step_of_adamw_is_the_one_on_paper(network: ExFuse) -> None:
    before = copy.deepcopy(network)
    (adamw,) = optimizers_of(network, "adamw")
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, -3.0)
    adamw.step()
    for (name, old), new in zip(before.named_parameters(), network.parameters(), strict=True):
        rate = 0.025 if name.startswith("backbone.") else 0.1
        decayed = old * (1 - rate * 0.02) if old.ndim > 1 else old
        torch.testing.assert_close(new, decayed + rate)  # the sign of the gradient, after one step


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_the_learning_rate_is_set_as_a_share_of_each_groups_peak(network: ExFuse, name: OptimizerName) -> None:
    optimizers = optimizers_of(network, name)
    peaks = [group["peak_lr"] for group in groups_of(optimizers)]
    for factor in (0.5, 0.1, 1.0):
        set_learning_rate(optimizers, factor)
        assert [group["lr"] for group in groups_of(optimizers)] == [peak * factor for peak in peaks]
    assert [group["peak_lr"] for group in groups_of(optimizers)] == peaks
    assert len(set(peaks)) == 2


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 9)])
def test_orthogonalising_keeps_singular_vectors_and_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.T @ orthogonalize(matrix) @ right.T
    values = rotated.diagonal()
    assert values.min() > 0.65
    assert values.max() < 1.2
    torch.testing.assert_close(rotated, torch.diag(values), atol=2e-3, rtol=0)


def test_orthogonalising_does_not_depend_on_the_scale_and_keeps_zero() -> None:
    matrix = torch.randn((4, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(matrix * 1000), orthogonalize(matrix), atol=1e-4, rtol=0)
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert torch.equal(orthogonalize(torch.zeros(4, 3, 5)), torch.zeros(4, 3, 5))


def test_two_steps_of_muon_are_those_on_paper() -> None:
    generator = torch.Generator().manual_seed(2)
    start, first, second = (torch.randn((4, 3, 3, 3), generator=generator) for _ in range(3))
    weight, idle = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = Muon([{"params": [weight, idle], "lr": 0.1, "weight_decay": 0.5}], momentum=0.9)
    expected, momentum = start.clone(), torch.zeros_like(start)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        looked_ahead = 0.1 * gradient + 0.9 * momentum
        direction = orthogonalize(looked_ahead.reshape(4, 27)).reshape(4, 3, 3, 3)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.sqrt(27) * direction
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(idle, start)


def orthogonalize_one(matrix: Tensor) -> Tensor:
    """Orthogonalises a matrix as it was done when each kernel was one."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize_one(matrix.T).T
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    scaled_identity = 3.4445 * torch.eye(len(gram))
    factor = scaled_identity + -4.7750 * gram + 2.0315 * gram @ gram
    for _ in range(4):
        current = factor @ gram @ factor
        factor = (scaled_identity + -4.7750 * current + 2.0315 * current @ current) @ factor
    return factor @ matrix


@pytest.mark.parametrize("shape", [(8, 3, 7, 7), (64, 16, 1, 1), (33, 31, 3, 3), (128, 4, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_update_of_an_ungrouped_kernel_is_what_it_was_to_the_bit(
    shape: tuple[int, int, int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(shape[1], shape[0], shape[2:]).to(memory_format=layout)
    network = nn.ModuleDict({"backbone": convolution})
    start = convolution.weight.detach().clone()
    convolution.weight.grad = torch.randn(shape).to(memory_format=layout)
    gradient = convolution.weight.grad.clone()
    muon, _ = build_optimizers(network, "muon", 0.1, 1.0, 0.02, 0.9)
    muon.step()
    ahead = gradient.lerp(torch.zeros_like(start).lerp_(gradient, 1 - 0.9), 0.9).flatten(1)
    direction = orthogonalize_one(ahead)
    expected = start.mul_(1 - 0.1 * 0.02).add_(direction.view(shape), alpha=-0.1 * (0.2 * max(direction.shape) ** 0.5))
    assert torch.equal(convolution.weight, expected)


@pytest.mark.parametrize(
    ("channels", "out_channels", "groups"), [(16, 32, 4), (64, 64, 32), (8, 64, 2), (12, 12, 12), (6, 18, 6)]
)
def test_a_grouped_kernel_steps_as_that_many_convolutions(channels: int, out_channels: int, groups: int) -> None:
    torch.manual_seed(0)
    together = nn.Conv2d(channels, out_channels, 3, groups=groups)
    apart = nn.ModuleList(nn.Conv2d(channels // groups, out_channels // groups, 3) for _ in range(groups))
    for step in range(2):
        gradients = torch.randn_like(together.weight)
        together.weight.grad = gradients
        for convolution, start, gradient in zip(
            apart, together.weight.detach().chunk(groups), gradients.chunk(groups), strict=True
        ):
            convolution.weight.grad = gradient.clone()
            if step == 0:
                convolution.weight.data.copy_(start)
        if step == 0:
            networks = [nn.ModuleDict({"backbone": part}) for part in (together, apart)]
            muons = [build_optimizers(network, "muon", 0.1, 1.0, 0.02, 0.9)[0] for network in networks]
        before = together.weight.detach().clone()
        for muon in muons:
            muon.step()
        expected = torch.cat([convolution.weight.detach() for convolution in apart])
        torch.testing.assert_close(together.weight.detach(), expected, rtol=1e-5, atol=1e-6)
        update = ((1 - 0.1 * 0.02) * before - together.weight.detach()).unflatten(0, (groups, -1)).flatten(2)
        scale = 0.1 * 0.2 * max(update.shape[1:]) ** 0.5
        values = torch.linalg.svdvals(update) / scale
        assert 0.6 < values.min() <= values.max() < 1.25


def test_muon_knows_the_groups_of_every_kernel_in_the_order_of_the_network() -> None:
    torch.manual_seed(0)
    network = create_model("exfuse_resnext50", num_classes=2, decoder="stride4", decoder_width=4, gcn_kernel=3)
    muon, _ = optimizers_of(network, "muon")
    groups = {id(module.weight): module.groups for module in network.modules() if isinstance(module, nn.Conv2d)}
    kernels = [parameter for parameter in network.parameters() if id(parameter) in groups]
    found = [pair for group in muon.param_groups for pair in zip(group["params"], group["matrices"], strict=True)]
    assert [id(parameter) for parameter, _ in found] == [id(parameter) for parameter in kernels]
    assert [count for _, count in found] == [groups[id(parameter)] for parameter in kernels]
    assert sum(count == 32 for _, count in found) == 16


class CountingNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def test_the_moving_average_is_that_of_a_slow_loop() -> None:
    torch.manual_seed(0)
    network, decay = CountingNetwork(), 0.6
    average = ExponentialMovingAverage(network, decay)
    expected = {name: value.double().clone() for name, value in network.state_dict().items()}
    kept_shares = []
    for step in range(14):
        network.train()(torch.randn(8, 5))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(network, step)
        kept = min(decay, (1 + step) / (10 + step))
        kept_shares.append(kept)
        for name, value in network.state_dict().items():
            if name == "norm.num_batches_tracked":
                expected[name] = value
            else:
                expected[name] = kept * expected[name] + (1 - kept) * value.double()
        for name, value in average.model.state_dict().items():
            torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    assert kept_shares[0] == 0.1  # the warm-up and what follows it were both seen
    assert kept_shares[7] < decay
    assert kept_shares[-1] == decay
    assert average.model.norm.num_batches_tracked.item() == 14
    assert average.model.norm.num_batches_tracked.dtype == torch.int64


def test_the_moving_average_is_torchs_to_the_bit_but_for_warm_up_and_counters() -> None:
    torch.manual_seed(0)
    network, decay = CountingNetwork(), 0.05  # below the first decay of the warm-up, so that there is none
    average = ExponentialMovingAverage(network, decay)
    torchs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    torchs.n_averaged.fill_(1)  # else its first update would copy the network
    for step in range(50):
        network.train()(torch.randn(8, 5))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(network, step)
        torchs.update_parameters(network)
    found, expected = average.model.state_dict(), torchs.module.state_dict()
    counters = [found.pop("norm.num_batches_tracked").item(), expected.pop("norm.num_batches_tracked").item()]
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert counters[0] == 50 != counters[1]  # torch averages the counter, too, and cuts the fraction off


def test_the_moving_average_is_a_network_of_its_own_ready_for_evaluation() -> None:
    torch.manual_seed(0)
    network = CountingNetwork().train()
    before = copy.deepcopy(network.state_dict())
    average = ExponentialMovingAverage(network, 0.5)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    with torch.no_grad():
        for value in average.model.state_dict().values():
            value.add_(1)
    average.update(network, 100)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.allclose(average.model.layer.weight, before["layer.weight"] + 0.5)
