"""Keeping OpenVINO's last step before the scores in float32, whatever the precision of the rest.

A score that is rounded to bfloat16 has eight digits left, so that neighbouring pixels and the two best classes of one
become equal, and the label is then the first of them.
"""

from pathlib import Path
from xml.etree import ElementTree

from exfuse.contained import contained
from exfuse.inference.engines.base import LABELS, LOGITS

with contained():
    import openvino as ov
    from openvino.utils.node_factory import NodeFactory

# How an operation that is not to be rounded is marked in OpenVINO's own files.
MARK = {"name": "precise", "version": "0"}
COMPUTED = "opset4"  # version of the interpolation that OpenVINO computes
IMAGE_RANK = 4  # N, channels, H, W
# What computes sizes, and not scores.
ASIDE = ("Constant", "ShapeOf")


def interpolated_scores(model: ov.Model) -> frozenset[str]:
    """Returns the names of the operations that make, interpolate and compare scores; none if they do not interpolate.

    They are those with K channels back to the last convolutions, with these. What has more channels is features,
    which are computed faster rounded. Scores that come out of a convolution of full size are left as they are, too: in
    float32 it would take half as long as the network before it.

    Args:
        model: With the outputs of a `DeployableModel`. The interpolation of its scores gets the form that OpenVINO
            computes; of one that is replaced when the model is compiled, the mark would be lost.
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
    size = ov.opset13.constant([1, 1], dtype="int64").output(0)  # of no meaning where scales are given
    computed = NodeFactory(COMPUTED).create(
        "Interpolate", [pixels, size, scales, axes], dict(interpolation.get_attributes())
    )
    for user in list(interpolation.output(0).get_target_inputs()):
        user.replace_source_output(computed.output(0))
    return computed


def keep_in_float32(path: Path, names: frozenset[str]) -> None:
    """Marks operations in a model that was written; the library's own interface has no way to.

    Args:
        path: The `.xml` file.
        names: Of the operations.
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
