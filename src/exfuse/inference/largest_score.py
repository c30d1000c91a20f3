"""Choosing labels in OpenVINO by what it does fast. Knows no torch.

Its own search for the largest of K scores takes the maps out of the order in which convolutions and interpolation
leave them, which takes longer than the search.
"""

import numpy as np
import openvino as ov

CLASS_AXIS = 1


def choose_by_maximum(model: ov.Model, num_classes: int) -> None:
    """Replaces the search by: the lowest class whose score is the maximum, exactly what it answers.

    Args:
        model: With the outputs of a `LabelGraph`. Where scores are not finite its labels are still classes.
        num_classes: K.
    """
    make = ov.opset13
    [search] = [operation for operation in model.get_ops() if operation.get_type_name() == "TopK"]
    scores = search.input_value(0)
    axis = make.constant(CLASS_AXIS, dtype="int64")
    index = make.constant(np.arange(num_classes, dtype=np.float32).reshape(1, -1, 1, 1))
    is_largest = make.equal(scores, make.reduce_max(scores, axis, keep_dims=True))
    candidates = make.select(is_largest, index, make.constant(np.float32(num_classes - 1)))
    chosen = make.reduce_min(candidates, axis, keep_dims=True)
    for user in list(search.output(1).get_target_inputs()):
        user.replace_source_output(chosen.output(0))
