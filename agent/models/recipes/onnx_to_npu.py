"""An ONNX encoder for an NPU: one fixed length, 16-bit activations and 8-bit weights in QDQ form.

Two repairs come first. Exporters mask with -3.4e38, which would take the whole range of a
16-bit scale: it becomes -50. And Gelu as a chain of operators around Erf is what an NPU cannot
take as a whole: it becomes one operator. Where the environment ``npu`` is there, the graph is
compiled for Qualcomm's HTP ahead of time, and the structure of what comes out is checked. It
was never run on such a chip: the record says so.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from agent.errors import ModelRejected
from agent.models.build_env import ENVIRONMENTS, BuildEnvironment
from agent.models.recipes.encoder_files import GRAPH, copy_descriptions, count_weights, read_graph
from agent.models.recipes.environment_program import run_program
from agent.models.recipes.golden import Encoder, compare, require_agreement, texts
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

LENGTH = 128  # tokens; shorter texts are padded, longer ones cut
CONTEXT = "model.qnn.onnx"
UNVERIFIED = "unverified on hardware"
SOC_MODEL, HTP_ARCH = "60", "73"  # what the context is compiled for, in Qualcomm's numbers
_MASKED = 1e30  # nothing that a model has learnt is that large
_MASK = 50.0
_OPSET = 21  # the first with Gelu and with 16-bit QDQ
_CALIBRATION_TEXTS = 16
_OUTSIDE = {"EPContext": 1, "DequantizeLinear": 8, "QuantizeLinear": 8}  # most of each kind in a compiled graph
_COMPILE = """
import onnxruntime, onnxruntime_qnn
source, made, soc, arch = sys.argv[1:]
onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "QNNExecutionProvider"]
options = onnxruntime.SessionOptions()
for key, value in (("enable", "1"), ("embed_mode", "1"), ("file_path", made)):
    options.add_session_config_entry("ep.context_" + key, value)
options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": soc, "htp_arch": arch}
options.add_provider_for_devices(devices[:1], settings)
onnxruntime.InferenceSession(source, options)
"""


def make(job: Job, tell: Tell) -> Made:
    """Write ``model.onnx`` and what belongs to it. Raises ModelRejected, InvalidRequest."""
    source, folder = Path(job.source), Path(job.folder)
    tell(Progress(step="reading", done=0, total=1))
    graph = read_graph(source, force=job.force)
    weights = count_weights(graph)
    tokenizer = source / "tokenizer.json"
    original = Encoder(source / GRAPH, tokenizer, threads=job.threads)
    rounded = folder / "npu"
    if not (rounded / GRAPH).is_file():
        partial = folder / ".partial-npu"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tempfile.tempdir = str(partial)  # the quantizer's own copies
        try:
            tell(Progress(step="fixing the length", done=0, total=1))
            fixed = partial / "fixed.onnx"
            onnx.save(_prepared(graph, partial), fixed)
            tell(Progress(step="rounding to 16 and 8 bits", done=0, total=1))
            _round(fixed, partial / GRAPH, Encoder(fixed, tokenizer, threads=job.threads))
            fixed.unlink()
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise ModelRejected(f"onnxruntime cannot quantize {source / GRAPH}: {str(error)[:300]}") from error
        finally:
            tempfile.tempdir = None
        shutil.rmtree(rounded, ignore_errors=True)
        partial.rename(rounded)
    del graph
    found = compare(Encoder(rounded / GRAPH, tokenizer, threads=job.threads), original, tell)
    remarks = [UNVERIFIED, require_agreement(found, job.output, force=job.force)]
    files = [GRAPH]
    inputs = {"length": str(LENGTH)}
    environment = BuildEnvironment(Path(job.environment), "npu")
    versions = {"onnxruntime": version("onnxruntime"), "onnx": version("onnx")}
    if environment.ready:
        tell(Progress(step="compiling for the HTP", done=0, total=1))
        remarks.append(_compiled(environment, rounded))
        files.append(CONTEXT)
        inputs |= {"soc_model": SOC_MODEL, "htp_arch": HTP_ARCH}
        versions["onnxruntime-qnn"] = next(
            pin.partition("==")[2] for pin in ENVIRONMENTS["npu"].pins if pin.startswith("onnxruntime-qnn")
        )
    else:
        remarks.append("not compiled: the environment npu is not there")
    for name in files:
        (rounded / name).replace(folder / name)
    shutil.rmtree(rounded)
    return Made(
        files=(*files, *copy_descriptions(source, folder)),
        format=ModelFormat.ONNX_ENCODER,
        versions=versions,
        inputs=inputs,
        remark="; ".join(remarks),
        parameters=weights,
        context_tokens=LENGTH,
    )


def _prepared(graph: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the graph with one length, without what follows from it, masked gently, with Gelu in one piece."""
    for value in graph.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) != 2:
            raise ModelRejected(f"the input {value.name} has {len(sizes)} dimensions; token ids have two")
        for size, fixed in zip(sizes, (1, LENGTH), strict=True):
            size.dim_value = fixed
    _soften_mask(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Basic: shapes become constants, and no operator of onnxruntime's own comes in.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = folder / "folded.onnx"
    options.optimized_model_filepath = str(folded)
    unfolded = folder / "unfolded.onnx"
    onnx.save(graph, unfolded)
    onnxruntime.InferenceSession(str(unfolded), options, providers=["CPUExecutionProvider"])
    found = onnx.load(folded)
    unfolded.unlink()
    folded.unlink()
    _soften_mask(found)
    del found.opset_import[:]
    found.opset_import.extend(entry for entry in graph.opset_import if entry.domain in {"", "ai.onnx"})
    if found.opset_import[0].version < _OPSET:
        found = version_converter.convert_version(found, _OPSET)
    return _with_gelu(found)


def _soften_mask(graph: onnx.ModelProto) -> None:
    """Replace the lowest number there is, which exporters mask with, by one that a scale can hold."""
    tensors = [(tensor, tensor.CopyFrom) for tensor in graph.graph.initializer]
    for node in graph.graph.node:
        tensors += [(held.t, held.t.CopyFrom) for held in node.attribute if held.HasField("t")]
    for tensor, replace in tensors:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        far = np.abs(values) >= _MASKED
        if far.any():
            replace(
                numpy_helper.from_array(np.where(far, np.sign(values) * _MASK, values).astype(np.float32), tensor.name)
            )


def _with_gelu(graph: onnx.ModelProto) -> onnx.ModelProto:
    # onnxruntime's own preprocessing for QNN fails with this onnx, so its one fusion that matters is called by itself.
    place = str(Path(onnxruntime.__file__).with_name("transformers"))
    sys.path.insert(0, place)  # its modules import each other by bare names
    try:
        from onnxruntime.transformers.fusion_gelu import FusionGelu
        from onnxruntime.transformers.onnx_model import OnnxModel
    finally:
        sys.path.remove(place)
    model = OnnxModel(graph)
    FusionGelu(model).apply()
    for node in model.model.graph.node:
        if node.op_type == "Gelu":
            node.domain = ""
    model.prune_graph()
    fused: onnx.ModelProto = model.model
    return fused


class _Texts(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """The shipped texts as the graph reads them."""

    def __init__(self, encoder: Encoder) -> None:
        self._inputs = iter([encoder.inputs(text) for text in texts()[:_CALIBRATION_TEXTS]])

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        return next(self._inputs, None)


def _round(source: Path, made: Path, encoder: Encoder) -> None:
    config: Any = get_qnn_qdq_config(
        str(source), _Texts(encoder), activation_type=QuantType.QUInt16, weight_type=QuantType.QUInt8
    )
    quantize(str(source), str(made), config)


def _compiled(environment: BuildEnvironment, folder: Path) -> str:
    """Compile the graph in a folder and return what was found. Raises ModelRejected for another structure."""
    made = folder / CONTEXT
    made.unlink(missing_ok=True)
    run_program(
        environment,
        _COMPILE,
        [str(folder / GRAPH), str(made), SOC_MODEL, HTP_ARCH],
        lambda _: None,
        what="the graph is not compiled for QNN",
    )
    if not made.is_file():
        raise ModelRejected("onnxruntime-qnn has compiled nothing of the graph")
    kinds: dict[str, int] = {}
    for node in onnx.load(made).graph.node:
        kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    if kinds.get("EPContext") != 1 or any(count > _OUTSIDE.get(kind, 0) for kind, count in kinds.items()):
        raise ModelRejected(f"the graph is not compiled as a whole: {json.dumps(kinds)}")
    return f"compiled ahead of time for HTP v{HTP_ARCH}: {json.dumps(kinds)}"
