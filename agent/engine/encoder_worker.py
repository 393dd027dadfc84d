"""The life of a worker whose model is an encoder: the frames of any other, texts in, rows out."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import NoReturn

from agent import device
from agent.engine import frames
from agent.engine.device_proof import placed
from agent.engine.encoder_queue import EncoderQueue
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.worker_status import ThreadChoice
from agent.types import Failure, FailureKind

Send = Callable[[frames.Event], None]


def load(order: frames.Load, confinement: tuple[str, ...], send: Send) -> OnnxEncoderRuntime:
    """Load the model and tell so. Raises ModelUnloadable."""
    started = time.monotonic()
    threads = order.threads or device.profile().decode_threads
    runtime, used = placed(
        order.model,
        threads=threads,
        wish=order.devices,
        known=order.verdicts,
        announce=lambda verdict: send(frames.Trying(verdict)),
    )
    ready = frames.Ready(
        runtime=runtime.name,
        context_tokens=runtime.tokens.most_tokens,
        confinement=confinement,
        traits=runtime.traits,
        device=used,
        load_ms=(time.monotonic() - started) * 1000,
    )
    send(ready)
    send(frames.Step(threads=ThreadChoice(threads, threads, "as set" if order.threads else "the cores of the machine")))
    return runtime


def serve(runtime: OnnxEncoderRuntime, inbox: SimpleQueue[frames.Command], send: Send) -> NoReturn:
    """Answer until the process ends."""
    queue = EncoderQueue(runtime)
    while True:
        refused: list[frames.Ended | frames.Scored] = []
        while (queue.idle and not refused) or not inbox.empty():
            match inbox.get():
                case frames.Encode() as ask:
                    queue.submit(ask)
                case frames.Cancel(request_id):
                    queue.cancel(request_id)
                case frames.Generate() as ask:
                    refused.append(frames.Ended(ask.id, failure=_cannot(runtime)))
                case frames.Score() as ask:
                    refused.append(frames.Scored(id=ask.id, failure=_cannot(runtime)))
                case frames.Pin(name=name):
                    state, message = frames.PrefixState.REFUSED, "an encoder keeps no beginnings of prompts"
                    send(frames.PrefixNews(name=name, state=state, message=message))
        encoded = queue.step()
        if encoded or refused:
            ended = tuple(one for one in refused if isinstance(one, frames.Ended))
            scored = tuple(one for one in refused if isinstance(one, frames.Scored))
            send(frames.Step(ended=ended, scored=scored, encoded=encoded))


def _cannot(runtime: OnnxEncoderRuntime) -> Failure:
    return Failure(FailureKind.REJECTED, f"the model writes nothing: it was made to {runtime.spec.task}", "model")
