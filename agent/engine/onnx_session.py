"""Opening an ONNX graph: what it may be, how it runs, and what onnxruntime's errors mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from agent.engine.refusals import ModelUnloadable

CPU = "CPUExecutionProvider"
_LOG_LEVEL_FATAL = 4  # errors are raised; what the library logs beside them may quote the model


def options(threads: int, *, spin_us: int = 0) -> Any:
    """Return the settings of a session that works with so many threads and sleeps between two runs.

    Between the steps of a run a thread looks for work for ``spin_us`` microseconds before it sleeps.
    """
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = threads
    found.inter_op_num_threads = 1
    found.log_severity_level = _LOG_LEVEL_FATAL
    # A thread that spins for long takes a core from everything else, the daemon among it.
    found.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        found.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return found


def open_session(
    graph: Path, settings: Any, configure: Callable[[Any], None] | None = None, *, content: bytes | None = None
) -> Any:
    """Return a session of the graph, on the processor unless ``configure`` names devices. Raises ModelUnloadable.

    ``content`` takes the place of what the file says; the weights are still those beside it.
    """
    if content is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(_LOG_LEVEL_FATAL)
    model = content or str(graph)
    try:
        if configure is None:
            return onnxruntime.InferenceSession(model, settings, providers=[CPU], enable_fallback=0)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        configure(settings)
        return onnxruntime.InferenceSession(model, settings, enable_fallback=0)
    except Exception as error:  # its errors have no narrower base
        raise ModelUnloadable(_in_words(graph.name, str(error))) from None


def _in_words(name: str, message: str) -> str:
    # "[ONNXRuntimeError] : 1 : FAIL : Load model from /x/model.onnx failed:..."
    text = message.rpartition("failed:")[2] if "Load model from" in message else message.split(" : ", 3)[-1]
    if "Protobuf parsing failed" in message or "No graph was found" in message:
        return f"{name} is no ONNX graph, or not a whole one"
    if "pset" in message and (found := re.search(r"is till opset (\d+)", message)):
        return (
            f"{name} is made for a newer operator set than onnxruntime {onnxruntime.__version__} has "
            f"(ai.onnx up to {found[1]}): export it with an older one"
        )
    if "xternal data" in message:
        told = text.rpartition("Error: ")[2]
        return f"{name} has weights in a file that is not inside its folder, or not there: {_short(told)}"
    return f"onnxruntime refuses {name}: {_short(text)}"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
