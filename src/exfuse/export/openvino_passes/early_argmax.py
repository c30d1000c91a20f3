"""Choosing labels in OpenVINO before full-size scores exist.

OpenVINO's convolutions store the K scores of a pixel next to each other. In this order, an argmax takes several times
as long as over one plane per class; reordering full-size scores, or copying them, takes as long again. Labels are
therefore chosen on the last small map. Each location of that map becomes several pixels; the pixels at the same
position within their location form a kind, and each kind is searched as one map. Only labels are then shuffled and
concatenated.
"""

import numpy as np

from exfuse.contained import contained

with contained():
    import openvino as ov

CLASSES, KIND, ROWS, COLUMNS = 1, 2, 3, 4  # axes of scores that are grouped by kind
END = np.iinfo(np.int32).max
LARGEST = float(np.finfo(np.float32).max)
make = ov.opset13


def choose_early(model: ov.Model, num_classes: int) -> None:
    """Moves the choice of labels before an interpolation or a pixel shuffle of the scores.

    Args:
        model: Has the outputs of a `DeployableModel`. Its scores are upsampled bilinearly by an even factor, shuffled,
            or neither. The scores it outputs do not change; those that labels are chosen from equal them up to
            rounding.
        num_classes: K.
    """
    [search] = [operation for operation in model.get_ops() if operation.get_type_name() == "TopK"]
    scores = search.input_value(0)
    if scores.get_node().get_type_name() == "Interpolate":
        factor = int(scores.get_node().input_value(1).get_node().data[0])  # the same for both sides
        labels = _between_locations(scores.get_node().input_value(0), factor)
    else:
        small = _before_shuffle(scores)
        channels = small.get_partial_shape()[CLASSES]
        if channels.is_dynamic or channels.get_length() == num_classes:
            return
        kinds = channels.get_length() // num_classes
        chosen = _labels_by_kind(small, num_classes, kinds)
        labels = make.depth_to_space(chosen, "blocks_first", round(kinds**0.5)).output(0)
    for user in list(search.output(1).get_target_inputs()):
        user.replace_source_output(labels)


def _before_shuffle(scores: ov.Output) -> ov.Output:
    """Returns the input of a pixel shuffle, which is a transposition between two reshapes; else `scores` itself."""
    chain = [scores]
    for kind in ("Reshape", "Transpose", "Reshape"):
        operation = chain[-1].get_node()
        if operation.get_type_name() != kind:
            return scores
        chain.append(operation.input_value(0))
    return chain[-1]


def _labels_by_kind(scores: ov.Output, num_classes: int, kinds: int) -> ov.Output:
    """Returns the first largest class of each kind, `(N, K * kinds, H, W)` to `(N, kinds, H, W)`.

    Where scores were concatenated, because borders are computed separately, the pieces' labels are concatenated.
    """
    operation = scores.get_node()
    if operation.get_type_name() == "Concat":
        pieces = [_labels_by_kind(piece, num_classes, kinds) for piece in operation.input_values()]
        return make.concat(pieces, operation.get_attributes()["axis"]).output(0)
    shape = make.shape_of(scores, "i64")
    first, last = (make.gather(shape, _indices(*axes), make.constant(0, dtype="int64")) for axes in ((0,), (2, 3)))
    # Changes no value, but keeps the convolution apart from the change of order and precision, which is slow after one.
    scores = make.clamp(scores, -LARGEST, LARGEST)
    by_kind = make.reshape(scores, make.concat([first, _indices(num_classes, kinds), last], 0), False)
    return make.squeeze(_first_largest(by_kind), _indices(CLASSES)).output(0)


def _between_locations(scores: ov.Output, factor: int) -> ov.Output:
    """Returns the first largest class of each upsampled pixel, `(N, 1, factor * H, factor * W)`."""
    locations = make.unsqueeze(scores, _indices(KIND))  # also reorders the scores into one plane per class
    for axis in (ROWS, COLUMNS):  # the border is repeated outwards
        locations = make.concat([_part(locations, axis, 0, 1), locations, _part(locations, axis, -1, END)], axis)
    kinds = [pixels for row in _between(locations, ROWS, factor) for pixels in _between(row, COLUMNS, factor)]
    chosen = make.squeeze(make.concat([_first_largest(pixels) for pixels in kinds], KIND), _indices(CLASSES))
    labels = make.depth_to_space(chosen, "blocks_first", factor)
    beyond = factor // 2  # of the pixels between a border and its repetition, half are outside the image
    cut = make.slice(labels, _indices(beyond, beyond), _indices(-beyond, -beyond), _indices(1, 1), _indices(2, 3))
    return cut.output(0)


def _between(locations: ov.Node, axis: int, factor: int) -> list[ov.Node]:
    """Returns the scores at `factor` positions between neighbours along an axis, which becomes one shorter."""
    before, after = _part(locations, axis, 0, -1), _part(locations, axis, 1, END)
    difference = make.subtract(after, before)  # zero where a border is repeated
    places = [make.constant(np.float32((index + 0.5) / factor)) for index in range(factor)]
    return [make.add(make.multiply(difference, place), before) for place in places]


def _first_largest(scores: ov.Node) -> ov.Output:
    return make.topk(scores, make.constant(1, dtype="int64"), CLASSES, "max", "value", "i64", stable=True).output(1)


def _part(locations: ov.Node, axis: int, start: int, stop: int) -> ov.Node:
    return make.slice(locations, _indices(start), _indices(stop), _indices(1), _indices(axis))


def _indices(*values: int) -> ov.Node:
    return make.constant(np.array(values, np.int64))
