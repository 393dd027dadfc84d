"""Are these files an ONNX model whose weights all lie among them?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.errors import ModelRejected
from agent.onnx_graph import OnnxGraph, read_graph

NEWEST_OPSET = 26  # of ONNX's own operators that the pinned onnxruntime guarantees to know
NEWEST_IR = 13  # of the file format, likewise


def check_onnx(path: Path, sizes: Mapping[str, int], name: str = "") -> OnnxGraph:
    """Return what a graph says of itself. ``sizes`` are the bytes of all files of the model, ``name`` is its own there.

    Raises ModelRejected for a file that is no graph, that needs operators of a newer ONNX, or whose
    weights are not among those files.
    """
    name = name or path.name
    graph = read_graph(path, name)
    if (opset := graph.opsets.get("", 0)) > NEWEST_OPSET:
        raise ModelRejected(
            f"{name} is of opset {opset}, this runtime knows those up to {NEWEST_OPSET}: "
            "export it with an older one, or update Outrider"
        )
    if graph.ir_version > NEWEST_IR:
        raise ModelRejected(
            f"{name} is an ONNX file of version {graph.ir_version}, this runtime reads those up to {NEWEST_IR}: "
            "export it with an older onnx, or update Outrider"
        )
    for data, needed in graph.data_files.items():
        if sizes.get(data, -1) < needed:
            has = f"has {sizes[data]}" if data in sizes else "is not among the model's files"
            raise ModelRejected(f"{name} looks for {needed} bytes of weights in {data}, which {has}")
    return graph
