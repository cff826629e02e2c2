"""`model.onnx` in memory, fitted to onnxruntime's CPU provider; the weights stay on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import MODEL_NAME

_MICROSOFT = "com.microsoft"


def load_model(directory: Path) -> onnx.ModelProto:
    """The package's graph without its weights; raises UserError where it is missing or broken."""
    path = directory / MODEL_NAME
    try:
        return onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise UserError(
            f"{directory} has no {MODEL_NAME}: open it with the backend it was built for, or "
            "export it again"
        ) from None
    except Exception as error:  # protobuf has no public class for a broken file
        raise UserError(f"{path} cannot be read: {error}; export the package again") from None


def fuse_weight_transposes(model: onnx.ModelProto) -> int:
    """Let float32 products read their weights as they are stored, [out, in].

    onnxruntime would fold Transpose(weight) into a transposed copy of every weight; its
    FusedMatMul takes the stored matrix, so weights stay mapped from their file and a one-token
    product is faster. Returns the number of products changed.
    """
    graph = model.graph
    weights = {t.name for t in graph.initializer if len(t.dims) == 2 and t.data_type == 1}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    transposed = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Transpose"
        and node.domain == ""
        and node.input[0] in weights
        and list(node.attribute[0].ints) == [1, 0]
    }
    fused = Counter[str]()
    for node in graph.node:
        if node.op_type == "MatMul" and node.domain == "" and node.input[1] in transposed:
            name = node.input[1]
            node.op_type, node.domain = "FusedMatMul", _MICROSOFT
            node.input[1] = transposed[name].input[0]
            node.attribute.append(onnx.helper.make_attribute("transB", 1))
            fused[name] += 1
    for name, count in fused.items():
        if uses[name] == count:
            graph.node.remove(transposed[name])
    if fused and all(opset.domain != _MICROSOFT for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_MICROSOFT, 1))
    return fused.total()
