"""Choosing labels in OpenVINO without enlarging all scores at once. Knows no torch.

Interpolated scores lie class by class for each pixel, the order in which convolutions leave them. To search the
largest of K takes several times as long in that order as in planes of one class each, and to change the order of all
that were enlarged takes as long again. So they are enlarged along their rows alone, put into planes, and enlarged down
their columns row by row: the first rows of all cells, the second ones and so on, each searched on its own.
"""

import numpy as np
import openvino as ov

CLASSES, ROWS, COLUMNS = 1, 2, 3  # axes of scores
END = np.iinfo(np.int32).max
make = ov.opset13


def choose_by_rows(model: ov.Model) -> None:
    """Replaces the enlarging of scores and the search that lead to the labels, if the scores are interpolated.

    Args:
        model: With the outputs of a `LabelGraph`. Its scores are left as they are; those compared for the labels are
            the same but for rounding.
    """
    [search] = [operation for operation in model.get_ops() if operation.get_type_name() == "TopK"]
    interpolation = search.input_value(0).get_node()
    if interpolation.get_type_name() != "Interpolate":
        return
    labels = _labels(interpolation)
    for user in list(search.output(1).get_target_inputs()):
        user.replace_source_output(labels)


def _labels(interpolation: ov.Node) -> ov.Output:
    """Returns the first largest class of each pixel, `(N, 1, H, W)`, of what an interpolation enlarges."""
    scores, factors = interpolation.input_value(0), interpolation.input_value(1).get_node().data
    along_rows = make.constant(np.array([1, factors[1]], np.float32))
    wide = make.interpolate(
        scores,
        along_rows,
        axes=_indices(ROWS, COLUMNS),
        **{key: interpolation.get_attributes()[key] for key in ("mode", "coordinate_transformation_mode")},
        shape_calculation_mode="scales",
    )
    # A side of one between rows and columns for the rows between two, and what puts the scores into planes.
    planes = make.unsqueeze(wide, _indices(COLUMNS))
    chosen = []
    for offset in _offsets(int(factors[0])):
        # In terms of a difference, which is exactly zero where a border repeats itself.
        difference = make.subtract(_shifted(planes, down=offset < 0), planes)
        row = make.add(make.multiply(difference, make.constant(np.float32(abs(offset)))), planes)
        found = make.topk(row, make.constant(1, dtype="int64"), CLASSES, "max", "value", "i64", stable=True)
        chosen.append(found.output(1))
    sides = make.shape_of(wide, "i64")
    factor = make.constant(np.array([1, 1, factors[0], 1], np.int64))
    one_class = make.scatter_update(sides, _indices(CLASSES), _indices(1), make.constant(0, dtype="int64"))
    return make.reshape(make.concat(chosen, COLUMNS), make.multiply(one_class, factor), False).output(0)


def _offsets(factor: int) -> list[float]:
    """Returns where the centre of each of a cell's pixels lies from the cell's own, in cells."""
    return [(index + 0.5) / factor - 0.5 for index in range(factor)]


def _shifted(planes: ov.Node, *, down: bool) -> ov.Node:
    """Returns each row's neighbour above it, or below; beyond the border the row itself."""

    def rows(start: int, stop: int) -> ov.Node:
        return make.slice(planes, _indices(start), _indices(stop), _indices(1), _indices(ROWS))

    return make.concat([rows(0, 1), rows(0, -1)] if down else [rows(1, END), rows(-1, END)], ROWS)


def _indices(*values: int) -> ov.Node:
    return make.constant(np.array(values, np.int64))
