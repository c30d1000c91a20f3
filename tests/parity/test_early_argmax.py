"""Labels chosen before the interpolation, as OpenVINO computes them, against the first largest score."""

from collections.abc import Callable

import numpy as np
import openvino
import pytest
import torch

from exfuse.export.formats.openvino import convert
from exfuse.export.openvino_passes.early_argmax import choose_early


class Chooses(torch.nn.Module):
    """The end of a graph, of scores in the place of images."""

    def __init__(self, enlarge: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.enlarge = enlarge

    def forward(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.enlarge(scores)
        return scores.argmax(dim=1).to(torch.uint8), scores * 1


def shuffled(scores: torch.Tensor) -> torch.Tensor:
    """Makes four scores of each, as a convolution does, the last column on its own, and shuffles them."""
    weights = torch.eye(scores.shape[1]).repeat_interleave(4, dim=0)[..., None, None]
    parts = [torch.nn.functional.conv2d(part, weights) for part in (scores[..., :-1], scores[..., -1:] * 2)]
    return torch.nn.functional.pixel_shuffle(torch.cat(parts, dim=3), 2)


ENLARGED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "not": lambda scores: scores,
    "twice": lambda scores: torch.nn.functional.interpolate(scores, scale_factor=2.0, mode="bilinear"),
    "four times": lambda scores: torch.nn.functional.interpolate(scores, scale_factor=4.0, mode="bilinear"),
    "shuffled": shuffled,
}


@pytest.mark.parametrize("enlarged", ENLARGED)
@pytest.mark.parametrize("classes", [2, 255])
def test_labels_in_openvino_are_the_first_largest_class(classes: int, enlarged: str):
    scores = torch.randint(0, 4, (2, classes, 9, 20)).float() - 2  # several are the largest
    chooses = Chooses(ENLARGED[enlarged])
    model = convert(torch.export.export(chooses, (scores,)))
    choose_early(model, classes)
    assert any(operation.get_type_name() == "DepthToSpace" for operation in model.get_ops()) == (enlarged != "not")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_array_equal(compiled(scores.numpy())["labels"], chooses(scores)[0].numpy())
    scores[0, :, 0, 0], scores[1, 1, 0, 0] = torch.nan, torch.inf
    labels = compiled(scores.numpy())["labels"]
    assert labels.max() < classes
    if enlarged == "not":
        assert labels[1, 0, 0] == 1
