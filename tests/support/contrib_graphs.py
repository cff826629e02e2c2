"""Small graphs of com.microsoft's operators as text, and onnxruntime to run them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
_HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
_KINDS = {"f": "float", "e": "float16", "i": "int32", "l": "int64"}


def parse(body: str, feeds: Arrays, held: Arrays) -> onnx.ModelProto:
    """A graph with the inputs `feeds`, the initializers `held` and the output y [batch,tokens,W].

    The first two dimensions of an input are symbolic, and the third of one called past….
    """
    inputs = ", ".join(_declared(name, array) for name, array in feeds.items())
    kind = _KINDS[next(array.dtype.char for array in feeds.values())]
    model = onnx.parser.parse_model(
        f"{_HEADER}\ng ({inputs}) => ({kind}[batch,tokens,W] y) {{{body}}}"
    )
    for name, array in held.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def _declared(name: str, array: NDArray[np.generic]) -> str:
    kind, symbols = _KINDS[array.dtype.char], {0: "batch", 1: "tokens"}
    if name.startswith("past"):
        symbols = {0: "batch", 2: "past"}
    sizes = [symbols.get(axis, str(size)) for axis, size in enumerate(array.shape)]
    return f"{kind}[{','.join(sizes)}] {name}" if sizes else f"{kind} {name}"


def run(model: onnx.ModelProto, feeds: Arrays) -> NDArray[np.generic]:
    """y of one run with onnxruntime's own optimisation off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    result: NDArray[np.generic] = session.run(["y"], {name: feeds[name] for name in names})[0]
    return result
