"""Keeping the last steps of an OpenVINO model, which compute the scores, in float32.

Scores rounded to bfloat16 have 8 significant bits. Neighbouring pixels, and the two best classes of a pixel, then often
have equal scores, and the label is the first of the equal classes.
"""

from pathlib import Path
from xml.etree import ElementTree

from exfuse.contained import contained
from exfuse.inference.engines.base import LABELS, LOGITS

with contained():
    import openvino as ov
    from openvino.utils.node_factory import NodeFactory

# OpenVINO's own mark, in its files, for an operation that must stay in float32.
MARK = {"name": "precise", "version": "0"}
COMPUTED = "opset4"  # version of the interpolation that OpenVINO computes without replacing it
IMAGE_RANK = 4  # N, channels, H, W
# Operations that compute sizes, not scores.
ASIDE = ("Constant", "ShapeOf")


def interpolated_scores(model: ov.Model) -> frozenset[str]:
    """Returns the names of the operations that compute, interpolate and compare scores; none without interpolation.

    These are the operations with K channels, back to the last convolutions and including them. Tensors with another
    number of channels are features, which are faster to compute in bfloat16. The scores of a full-size convolution also
    stay rounded: in float32 it would take half as long as the network before it.

    Args:
        model: Has the outputs of a `DeployableModel`. The interpolation of its scores is changed to the version that
            OpenVINO computes; any other is replaced when the model is compiled, which loses the mark.
    """
    names, waiting, interpolated = set(), [model.output(name).get_node() for name in (LOGITS, LABELS)], False
    classes = model.output(LOGITS).get_partial_shape()[1]
    while waiting:
        operation = waiting.pop()
        kind = operation.get_type_name()
        shape = operation.get_output_partial_shape(0)
        is_image = shape.rank.get_length() == IMAGE_RANK and operation.get_output_element_type(0).is_real()
        is_features = is_image and shape[1] != classes
        if operation.get_friendly_name() in names or kind in ASIDE or is_features:
            continue
        if kind == "Interpolate":
            operation, interpolated = _in_computed_form(operation), True
        if kind != "Result":
            names.add(operation.get_friendly_name())
        if "Convolution" not in kind:
            waiting += [value.get_source_output().get_node() for value in operation.inputs()]
    return frozenset(names if interpolated else ())


def _in_computed_form(interpolation: ov.Node) -> ov.Node:
    if interpolation.get_type_info().version_id == COMPUTED:
        return interpolation
    pixels, scales, axes = (value.get_source_output() for value in interpolation.inputs())
    size = ov.opset13.constant([1, 1], dtype="int64").output(0)  # unused, since scales are given
    computed = NodeFactory(COMPUTED).create(
        "Interpolate", [pixels, size, scales, axes], dict(interpolation.get_attributes())
    )
    for user in list(interpolation.output(0).get_target_inputs()):
        user.replace_source_output(computed.output(0))
    return computed


def keep_in_float32(path: Path, names: frozenset[str]) -> None:
    """Marks operations of a written model to stay in float32; OpenVINO's Python interface cannot do this.

    Args:
        path: The `.xml` file.
        names: Names of the operations.
    """
    if not names:
        return
    tree = ElementTree.parse(path)  # noqa: S314 - we have just written it
    for layer in tree.iter("layer"):
        if layer.get("name") not in names:
            continue
        information = layer.find("rt_info")
        if information is None:
            information = ElementTree.Element("rt_info")
            layer.insert(1 if layer.find("data") is not None else 0, information)
        ElementTree.SubElement(information, "attribute", MARK)
    tree.write(path)
