"""Are these files an ONNX model whose weights all lie among them?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.errors import ModelRejected
from agent.onnx_graph import OnnxGraph, read_graph


def check_onnx(path: Path, sizes: Mapping[str, int]) -> OnnxGraph:
    """Return what a graph says of itself. ``sizes`` are the bytes of all files of the model.

    Raises ModelRejected for a file that is no graph, or whose weights are not among those files.
    """
    graph = read_graph(path)
    for name, needed in graph.data_files.items():
        if sizes.get(name, -1) < needed:
            has = f"has {sizes[name]}" if name in sizes else "is not among the model's files"
            raise ModelRejected(f"{path.name} looks for {needed} bytes of weights in {name}, which {has}")
    return graph
