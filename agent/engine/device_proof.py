"""Choosing the device of an encoder by proof: what a provider says of itself is not believed.

A device is used when most of the graph really runs there, known texts come out as they do on
the processor, and it is not slower. Anything else is the next device, with the reason kept.
onnxruntime by itself falls back to the processor without a word.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from agent.compute import DeviceKind, DeviceUse, DeviceVerdict, DeviceWish
from agent.encoder import EncoderTask
from agent.engine.encoder_tokens import Tokens
from agent.engine.execution_providers import Candidate, Offer, offer
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.onnx_session import CPU
from agent.engine.refusals import ModelUnloadable
from agent.types import ModelFile

LEAST_SHARE = 0.8  # of the nodes; the rest goes back and forth
LEAST_AGREEMENT = 0.98  # what 8 bits keep of an encoder; a mask or scale gone wrong is far below
LEAST_SPEED = 1.0  # times the processor's
RUNS = 5
TEXTS = (
    "The parcel was delivered this morning.",
    "Which train goes to the airport?",
    "Water boils at a lower temperature in the mountains because the air pressure is lower there.",
    "No.",
    "La facture du mois de mars n'est pas encore payée.",
)

Announce = Callable[[DeviceVerdict], None]


def placed(
    model: ModelFile,
    *,
    threads: int,
    wish: DeviceWish,
    known: Sequence[DeviceVerdict],
    announce: Announce,
    devices: Callable[[], Offer] = offer,
) -> tuple[OnnxEncoderRuntime, DeviceUse]:
    """Load a model on the best device that proves itself; return it with what was proved.

    ``known`` are earlier verdicts. ``announce`` is called before a device is tried for the first
    time: should its driver end this process, that was it. Raises ModelUnloadable.
    """
    found = devices()
    verdicts = {one.key: one for one in known}
    refused: list[DeviceVerdict] = []
    reference: OnnxEncoderRuntime | None = None
    for candidate in found.candidates:
        if candidate.kind not in wish.kinds or candidate.provider == CPU:
            continue
        if candidate.kind is DeviceKind.CPU:
            refused.append(_verdict(candidate, model, "its device is the processor, where onnxruntime's own is used"))
            continue
        verdict = verdicts.get(_verdict(candidate, model, "").key)
        if verdict is not None and not verdict.holds:
            refused.append(verdict)
            continue
        if verdict is None:
            announce(_verdict(candidate, model, "it is being tried"))
            reference = reference or OnnxEncoderRuntime(model, threads=threads)
        runtime, verdict = tried(candidate, model, threads, reference, verdict)
        if runtime is not None:
            return runtime, DeviceUse(used=verdict, refused=tuple(refused), problems=found.problems)
        refused.append(verdict)
    if DeviceKind.CPU not in wish.kinds:
        reasons = "; ".join(f"{one.provider}: {one.reason}" for one in refused) or "there is none"
        raise ModelUnloadable(f'engine.devices is "{wish}", and no {wish} proves itself: {reasons}')
    used = _processor(found, model)
    runtime = reference or OnnxEncoderRuntime(model, threads=threads)
    return runtime, DeviceUse(used=used, refused=tuple(refused), problems=found.problems)


def tried(
    candidate: Candidate,
    model: ModelFile,
    threads: int,
    reference: OnnxEncoderRuntime | None,
    known: DeviceVerdict | None = None,
) -> tuple[OnnxEncoderRuntime | None, DeviceVerdict]:
    """Load a model on a device; return it, None where it does not hold, and what was proved.

    With ``known`` only where the graph runs is looked at again, and no ``reference`` is needed.
    """
    try:
        runtime = OnnxEncoderRuntime(model, threads=threads, configure=candidate.configure)
        share = runtime.node_share(candidate.provider)
        if share < LEAST_SHARE:
            reason = f"{share:.0%} of the graph runs there, the rest on the processor; {LEAST_SHARE:.0%} are wanted"
            return None, _verdict(candidate, model, reason, node_share=share)
        if known is not None:
            return runtime, known
        assert reference is not None
        batch = _texts(reference)
        agreement = _agreement(runtime, reference, batch)
        speed = _seconds(reference, batch) / _seconds(runtime, batch)
    except Exception as error:  # drivers raise what they like
        told = " ".join(str(error).split())[:300]
        return None, _verdict(candidate, model, f"the model does not run there: {told}")
    proof: dict[str, float | None] = {"node_share": share, "agreement": agreement, "speed": speed}
    if agreement < LEAST_AGREEMENT:
        reason = f"its outputs agree with the processor's to {agreement:.3f}; {LEAST_AGREEMENT} is wanted"
        return None, _verdict(candidate, model, reason, **proof)
    if speed < LEAST_SPEED:
        return None, _verdict(candidate, model, f"it has {speed:.2f} times the speed of the processor", **proof)
    reason = f"{share:.0%} of the graph, agreement {agreement:.3f}, {speed:.1f} times the speed of the processor"
    return runtime, candidate.verdict(model.sha256, holds=True, reason=reason, **proof)


def _verdict(candidate: Candidate, model: ModelFile, reason: str, **proof: float | None) -> DeviceVerdict:
    return candidate.verdict(model.sha256, holds=False, reason=reason, **proof)


def _processor(found: Offer, model: ModelFile) -> DeviceVerdict:
    own = next(one for one in found.candidates if one.provider == CPU)
    reason = "the reference that other devices are measured by"
    return own.verdict(model.sha256, holds=True, reason=reason, node_share=1.0, agreement=1.0, speed=1.0)


def _texts(runtime: OnnxEncoderRuntime) -> list[Tokens]:
    query = TEXTS[1] if runtime.spec.task is EncoderTask.RERANK else None
    return [runtime.tokens.read(text, query, truncate=True) for text in TEXTS]


def _agreement(runtime: OnnxEncoderRuntime, reference: OnnxEncoderRuntime, batch: Sequence[Tokens]) -> float:
    """Return how alike the outputs are, of the text where they are least: cosines, or 1 - the largest difference."""
    if runtime.spec.task is EncoderTask.TAG:
        same = [one == other for one, other in zip(_pieces(runtime, batch), _pieces(reference, batch), strict=True)]
        return sum(same) / len(same)
    ours, theirs = (np.asarray(one.rows(batch), np.float64) for one in (runtime, reference))
    if not np.isfinite(ours).all():
        return 0.0
    if runtime.spec.task is EncoderTask.EMBED:
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
    if runtime.spec.task is EncoderTask.CLASSIFY:
        ours, theirs = np.exp(ours), np.exp(theirs)
    return float(1 - np.abs(ours - theirs).max())


def _pieces(runtime: OnnxEncoderRuntime, batch: Sequence[Tokens]) -> list[list[tuple[int, int, str]]]:
    return [[(span.start, span.end, span.label) for span in spans] for spans in runtime.spans(batch)]


def _seconds(runtime: OnnxEncoderRuntime, batch: Sequence[Tokens]) -> float:
    """Return the median time of a pass over the texts one by one, as most requests come."""
    run: Callable[[Sequence[Tokens]], object] = runtime.spans if runtime.spec.task is EncoderTask.TAG else runtime.rows
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        for tokens in batch:
            run([tokens])
        times.append(time.perf_counter() - began)
    return statistics.median(times)
