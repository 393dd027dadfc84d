"""An ONNX encoder with 8-bit weights, activations rounded as they come. Needs no network and no other program.

The weights take 7 of the 8 bits: products of an unsigned and a signed byte are added in pairs
into 16 bits on processors without VNNI, and saturate there without a word when both use all
eight. So the one file is right on every processor; one scale per column keeps it near its source.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from agent.errors import ModelRejected
from agent.models.recipes.encoder_files import GRAPH, copy_descriptions, count_weights, longest_input, read_graph
from agent.models.recipes.golden import Encoder, compare, require_agreement
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

_MOST_IN_ONE_FILE = 1_800_000_000  # bytes; protobuf ends at 2 GiB


def make(job: Job, tell: Tell) -> Made:
    """Write ``model.onnx`` and what belongs to it. Raises ModelRejected, InvalidRequest.

    A rounded graph that was finished before is not made again; it is compared again.
    """
    source, folder = Path(job.source), Path(job.folder)
    tell(Progress(step="reading", done=0, total=1))
    graph = read_graph(source, force=job.force)
    weights = count_weights(graph)
    rounded = folder / "int8"
    if not (rounded / GRAPH).is_file():
        tell(Progress(step="rounding to 8 bits", done=0, total=1))
        partial = folder / ".partial-int8"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tempfile.tempdir = str(partial)  # the quantizer's own copies
        try:
            quantize_dynamic(
                graph,
                partial / GRAPH,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=weights > _MOST_IN_ONE_FILE,
            )
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise ModelRejected(f"onnxruntime cannot quantize {source / GRAPH}: {str(error)[:300]}") from error
        finally:
            tempfile.tempdir = None
        shutil.rmtree(rounded, ignore_errors=True)
        partial.rename(rounded)
    del graph
    tokenizer = source / "tokenizer.json"
    found = compare(
        Encoder(rounded / GRAPH, tokenizer, threads=job.threads),
        Encoder(source / GRAPH, tokenizer, threads=job.threads),
        tell,
    )
    remark = require_agreement(found, job.output, force=job.force)
    names = []
    for path in sorted(rounded.iterdir()):
        path.replace(folder / path.name)
        names.append(path.name)
    rounded.rmdir()
    return Made(
        files=(*names, *copy_descriptions(source, folder)),
        format=ModelFormat.ONNX_ENCODER,
        versions={"onnxruntime": version("onnxruntime"), "onnx": version("onnx")},
        remark=remark,
        parameters=weights,
        context_tokens=longest_input(source),
    )
