"""A decoder graph that gives the logits of chosen tokens only, and what they are made of.

The builder's graphs compute those of every token. Of a prompt only the last are wanted, and with
a small model they are a fifth to two thirds of all work: tokens are chosen right before that step.
"""

from __future__ import annotations

from pathlib import Path

import onnx

LARGEST_GRAPH = 64 << 20  # bytes, without the weights in files of their own
CHOSEN = "outrider_chosen_tokens"  # the new input: int64, which tokens of a run
HIDDEN = "outrider_hidden_states"  # the new output: of the same tokens, before the last product; free unless asked for
_HEADS = frozenset({"MatMul", "MatMulNBits", "MatMulInteger", "Gemm"})
_BEHIND = frozenset({"Cast", "Mul", "Div", "Tanh", "Add"})  # what may stand between the last product and the logits


def with_chosen_rows(path: Path, logits: str) -> bytes | None:
    """Return the graph with the input CHOSEN and the output HIDDEN; None where it is of another kind, and is run as it is."""
    if path.stat().st_size > LARGEST_GRAPH:
        return None
    model = onnx.load_model(str(path), load_external_data=False)
    head = _head(model.graph, logits)
    if head is None:
        return None
    index, node = head
    hidden = node.input[0]
    node.input[0] = HIDDEN
    choice = onnx.helper.make_node("Gather", [hidden, CHOSEN], [node.input[0]], name=node.input[0], axis=1)
    model.graph.node.insert(index, choice)
    model.graph.input.append(onnx.helper.make_tensor_value_info(CHOSEN, onnx.TensorProto.INT64, ["chosen"]))
    model.graph.output.append(onnx.ValueInfoProto(name=HIDDEN))  # its type is worked out when the graph is loaded
    for value in (*model.graph.output, *model.graph.value_info):
        if value.name == logits and len(value.type.tensor_type.shape.dim) > 1:
            value.type.tensor_type.shape.dim[1].dim_param = "chosen"
    # Sizes of what lies behind the choice are worked out anew.
    kept = [value for value in model.graph.value_info if value.name == logits]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    content: bytes = model.SerializeToString()
    return content


def _head(graph: onnx.GraphProto, logits: str) -> tuple[int, onnx.NodeProto] | None:
    """Return the product that makes the logits, and its place among the nodes."""
    made_by = {output: (index, node) for index, node in enumerate(graph.node) for output in node.output}
    fixed = {tensor.name for tensor in graph.initializer}
    name = logits
    while found := made_by.get(name):
        node = found[1]
        if node.op_type in _HEADS:
            return found if all(other in fixed for other in node.input[1:]) else None
        given = [one for one in node.input if one not in fixed and _operator(made_by, one) != "Constant"]
        if node.op_type not in _BEHIND or len(given) != 1:
            return None
        name = given[0]
    return None


def _operator(made_by: dict[str, tuple[int, onnx.NodeProto]], name: str) -> str:
    return made_by[name][1].op_type if name in made_by else ""
