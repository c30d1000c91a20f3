"""Choosing labels in OpenVINO from interpolated scores without a map of all of them. Knows no torch.

Enlarged scores lie class by class for each pixel, as convolutions leave them. To search the largest of K takes several
times as long in that order as in planes of one class each, and to change the order of so many takes as long again. So
the small map is put into planes, and all pixels that lie alike between four cells, sixteen kinds for a factor of four,
are made and searched together, each kind in a map as small as the first.
"""

import numpy as np
import openvino as ov

CLASSES, SPARE, ROWS, COLUMNS = 1, 2, 3, 4  # axes of scores with one more, which is what puts them into planes
END = np.iinfo(np.int32).max
make = ov.opset13


def choose_between_cells(model: ov.Model) -> None:
    """Replaces the enlarging of scores and the search that lead to the labels, if the scores are interpolated.

    Args:
        model: With the outputs of a `LabelGraph`, whose scores are enlarged bilinearly by an even factor if at all.
            They are left as they are; those compared for the labels are the same but for rounding.
    """
    [search] = [operation for operation in model.get_ops() if operation.get_type_name() == "TopK"]
    interpolation = search.input_value(0).get_node()
    if interpolation.get_type_name() != "Interpolate":
        return
    factor = int(interpolation.input_value(1).get_node().data[0])  # the same for both sides
    labels = _labels(interpolation.input_value(0), factor)
    for user in list(search.output(1).get_target_inputs()):
        user.replace_source_output(labels)


def _labels(scores: ov.Output, factor: int) -> ov.Output:
    """Returns the first largest class of each pixel, `(N, 1, factor * H, factor * W)`."""
    cells = make.unsqueeze(scores, _indices(SPARE))
    for axis in (ROWS, COLUMNS):  # what lies beyond the border is what lies at it
        cells = make.concat([_part(cells, axis, 0, 1), cells, _part(cells, axis, -1, END)], axis)
    kinds = [pixels for row in _between(cells, ROWS, factor) for pixels in _between(row, COLUMNS, factor)]
    chosen = make.squeeze(make.concat([_first_largest(pixels) for pixels in kinds], SPARE), _indices(CLASSES))
    labels = make.depth_to_space(chosen, "blocks_first", factor)
    beyond = factor // 2  # of the pixels between a border's cells and those beyond them half belong to each
    cut = make.slice(labels, _indices(beyond, beyond), _indices(-beyond, -beyond), _indices(1, 1), _indices(2, 3))
    return cut.output(0)


def _between(cells: ov.Node, axis: int, factor: int) -> list[ov.Node]:
    """Returns the scores at each of the places between neighbours along an axis, of which there is one less."""
    before, after = _part(cells, axis, 0, -1), _part(cells, axis, 1, END)
    difference = make.subtract(after, before)  # zero where a border repeats itself
    places = [make.constant(np.float32((index + 0.5) / factor)) for index in range(factor)]
    return [make.add(make.multiply(difference, place), before) for place in places]


def _first_largest(scores: ov.Node) -> ov.Output:
    return make.topk(scores, make.constant(1, dtype="int64"), CLASSES, "max", "value", "i64", stable=True).output(1)


def _part(cells: ov.Node, axis: int, start: int, stop: int) -> ov.Node:
    return make.slice(cells, _indices(start), _indices(stop), _indices(1), _indices(axis))


def _indices(*values: int) -> ov.Node:
    return make.constant(np.array(values, np.int64))
