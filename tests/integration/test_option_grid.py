"""Every combination of the network's options: trained a step, saved, loaded, folded and exported, or refused."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from exfuse.export.formats import format_of
from exfuse.export.trace import export_program
from exfuse.inference.engines.onnxruntime import OnnxRuntimeEngine
from exfuse.inference.engines.openvino import OpenVINOEngine, read_openvino
from exfuse.inference.engines.torch_eager import TorchEngine
from exfuse.models.exfuse import ExFuse
from exfuse.models.folding import fold
from exfuse.models.options import ModelOptions
from exfuse.models.registry import build_model
from exfuse.models.storage.metadata import ModelMetadata
from exfuse.models.storage.pretrained import load_pretrained, save_pretrained
from support.networks import unsettle

CLASSES = 2
SIZES = [(64, 96), (33, 47), (65, 31)]  # of which two are padded
FAMILIES = ["exfuse", "gcn"]

# What stands behind the last fusion. "narrow" is K channels and "wide" K k k, at which layers come or go: both are here
# with their neighbours.
DECODERS = ["full", "stride4"]
WIDTHS = ["narrow", "wide", "K - 1", "K + 1", "K k k - 1", "K k k + 1"]
WINDOWS = [1, 3, 5]
NO_TTA = [False, True]
HEADS = list(itertools.product(DECODERS, WIDTHS, WINDOWS, NO_TTA))

# What stands before it.
EMBEDDINGS: list[dict[str, Any]] = [
    {"semantic_embedding": False},
    {"semantic_embedding": True},
    {"semantic_embedding": True, "semantic_embedding_norm": False},
    {"semantic_embedding": True, "semantic_embedding_width": 6},
    {"semantic_embedding": True, "semantic_embedding_width": 6, "semantic_embedding_norm": False},
]
UPSAMPLINGS: list[dict[str, Any]] = [
    {"channel_resolution_embedding": embedding, "auxiliary_prediction": auxiliary}
    for embedding in (False, True)
    for auxiliary in (False, True)
]
SUPERVISED = [False, True]
BODIES = list(itertools.product(EMBEDDINGS, UPSAMPLINGS, SUPERVISED))


class Combination(NamedTuple):
    """One network of the grid."""

    family: str
    num_classes: int
    options: ModelOptions
    size: tuple[int, int]

    @property
    def info(self) -> ModelMetadata:
        """What it is built from."""
        return ModelMetadata(
            name=f"{self.family}_tiny",
            options=self.options,
            class_names=tuple(str(number) for number in range(self.num_classes)),
            palette=tuple((number, 0, 0) for number in range(self.num_classes)),
            ignore_index=255,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.25, 0.25, 0.25),
        )


def combination(
    head: tuple[Any, ...], body: tuple[Any, ...], family: str, size: tuple[int, int], num_classes: int = CLASSES
) -> Combination:
    decoder, width, window, plain = head
    embedding, upsampling, supervised = body
    numbers = {
        f"{base} {sign} 1": value + step
        for base, value in (("K", num_classes), ("K k k", num_classes * window**2))
        for sign, step in (("-", -1), ("+", 1))
    }
    options = ModelOptions(
        gcn_kernel=3, decoder=decoder, decoder_width=numbers.get(width, width), dap_window=window,
        dap_control_conv=plain, supervised_features=supervised, **embedding, **upsampling,
    )  # fmt: skip
    return Combination(family, num_classes, options, size)


def chosen(widths: Sequence[str | int] = WIDTHS, num_classes: int = CLASSES) -> list[Combination]:
    """Every head once, the other options in turn so that each value of theirs meets each value of the head's."""
    cases = []
    places = itertools.product(range(2), range(6), range(3), range(2))
    for d, w, k, p in places:
        head = (DECODERS[d], widths[w], WINDOWS[k], NO_TTA[p])
        body = (
            EMBEDDINGS[(w + k + 2 * p + 3 * d) % 5],
            UPSAMPLINGS[(w + k + p + 2 * d) % 4],
            SUPERVISED[(w + k + d) % 2],
        )
        family, size = FAMILIES[(w // 2 + k + p + d) % 2], SIZES[(w + 2 * p + d) % 3]
        cases.append(combination(head, body, family, size, num_classes))
    return cases


def of_eleven_classes() -> list[Combination]:
    """Widths that are the numbers of 11 classes, and their neighbours: 11 and, with a window of 3, 99."""
    return [case for case in chosen((10, 11, 12, 98, 99, 100), 11) if case.options.dap_window < 5]


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone, in which DistributedDataParallel asks the same of a step as in others."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sum_of_scores(output: Any) -> Tensor:
    scores = [output.logits, *output.auxiliary_logits]
    return sum((score * torch.randn_like(score)).sum() for score in scores)


def take_steps(model: ExFuse, images: Tensor) -> set[str]:
    """Takes a step and returns the parameters without a gradient.

    Gradients are computed twice: the second forward pass raises if a parameter took no part in the first.
    """
    network = DistributedDataParallel(model.train())
    for _ in range(2):
        model.zero_grad()
        sum_of_scores(network(images)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    torch.optim.SGD(model.parameters(), 0.1).step()
    return without


def check(case: Combination, folder: Path) -> None:
    info, without = case.info, None
    for seed in range(4):  # by chance, both channels of a narrow refinement may be dead behind their ReLU
        torch.manual_seed(seed)
        model = build_model(info)
        unsettle(model)
        images = torch.randn(2, 3, *case.size)
        dead = take_steps(model, images)
        without = dead if without is None else without & dead
        if not without:
            break
    assert without == set()
    save_pretrained(folder, model, info.to_json(), "")
    loaded, found = load_pretrained(folder)
    assert found == info
    with torch.no_grad():
        expected = model.eval()(images).logits
        assert torch.equal(loaded(images).logits, expected)
        folded = fold(loaded)(images).logits
    assert expected.shape == (2, case.num_classes, *case.size)
    scale = float(expected.abs().max())
    assert float((folded - expected).abs().max()) <= 1e-5 * scale
    best = expected.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1]) > 2e-5 * scale
    assert torch.equal(folded.argmax(1)[clear], expected.argmax(1)[clear])


def folds_slowly(case: Combination) -> bool:
    """Returns whether folding takes seconds: a window of 5 behind a map that is as wide."""
    width = case.options.decoder_width
    return case.options.dap_window == 5 and width != "narrow" and (width == "wide" or width > case.num_classes + 1)


def named(case: Combination) -> str:
    return f"{case.info.name} K={case.num_classes} {case.size} {case.options}"


def failures(cases: list[Combination], folder: Path) -> list[str]:
    found = []
    for number, case in enumerate(cases):
        try:
            check(case, folder / str(number))
        except Exception as error:  # all of them are wanted
            found.append(f"{named(case)}: {type(error).__name__}: {str(error)[:200]}")
    return found


def test_the_chosen_combinations_have_every_pair_of_options() -> None:
    def values(case: Combination) -> list[str]:
        embedding = (
            case.options.semantic_embedding,
            *(getattr(case.options, f"semantic_embedding_{k}") for k in ("norm", "width")),
        )
        upsampling = (case.options.channel_resolution_embedding, case.options.auxiliary_prediction)
        return [str(embedding), str(upsampling), *map(str, (case.options.supervised_features, case.size, case.family))]

    cases = chosen()
    heads = [[str(value) for value in head] for head in HEADS]
    for first, second in itertools.product(range(4), range(5)):
        pairs = {(head[first], values(case)[second]) for head, case in zip(heads, cases, strict=True)}
        one, other = ({pair[side] for pair in pairs} for side in (0, 1))
        assert pairs == set(itertools.product(one, other)), (first, second)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("plain", NO_TTA)
def test_every_head_trains_is_kept_and_folds(decoder: str, plain: bool, group: None, tmp_path: Path) -> None:
    of_this = [case for case in chosen() if (case.options.decoder, case.options.dap_control_conv) == (decoder, plain)]
    cases = [case for case in of_this if not folds_slowly(case)]
    assert (len(of_this), len(cases)) == (18, 15)
    assert failures(cases, tmp_path) == []


@pytest.mark.nightly
def test_heads_that_fold_slowly_train_are_kept_and_fold(group: None, tmp_path: Path) -> None:
    cases = [case for case in chosen() if folds_slowly(case)]
    assert len(cases) == 12
    assert failures(cases, tmp_path) == []


# Of heads that fold slowly there is one network each above: what stands before the last fusion does not reach the fold.
@pytest.mark.nightly
@pytest.mark.parametrize("supervised", SUPERVISED)
@pytest.mark.parametrize("embedding", EMBEDDINGS, ids=str)
def test_every_combination_trains_is_kept_and_folds(
    embedding: dict[str, Any], supervised: bool, group: None, tmp_path: Path
) -> None:
    bodies = [(embedding, upsampling, supervised) for upsampling in UPSAMPLINGS]
    every = [
        combination(head, body, FAMILIES[number % 2], SIZES[number % 3])
        for number, (head, body) in enumerate(itertools.product(HEADS, bodies))
    ]
    cases = [case for case in every if not folds_slowly(case)]
    assert (len(every), len(cases)) == (288, 240)
    assert failures(cases, tmp_path) == []


@pytest.mark.nightly
def test_widths_that_meet_the_numbers_of_eleven_classes(group: None, tmp_path: Path) -> None:
    assert failures(of_eleven_classes(), tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*chosen(), *of_eleven_classes()], ids=named)
def test_every_head_is_exported(case: Combination) -> None:
    torch.manual_seed(0)
    model = unsettle(build_model(case.info)).eval()
    program = export_program(model, case.info).module()
    height, width = (max(33, side) for side in case.size)  # the least that torch.export's form takes
    pixels = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    labels, logits = program(pixels)
    expected = torch.from_numpy(TorchEngine(model, case.info).scores(pixels.numpy()))
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert float((labels == expected.argmax(1)).float().mean()) >= 0.999


@pytest.mark.nightly
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("case", chosen()[::9], ids=named)
def test_a_sample_is_written_for_other_engines(case: Combination, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = unsettle(build_model(case.info)).eval()
    path = tmp_path / f"model{suffix}"
    format_of(suffix).write(export_program(model, case.info), case.info, path)
    engine = OnnxRuntimeEngine(path) if suffix == ".onnx" else OpenVINOEngine(*read_openvino(path), "fp32", path)
    pixels = torch.randint(0, 256, (1, *case.size, 3), dtype=torch.uint8).numpy()
    expected = torch.from_numpy(TorchEngine(model, case.info).scores(pixels))
    found = torch.from_numpy(engine.scores(pixels))
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
