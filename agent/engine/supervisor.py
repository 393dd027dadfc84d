"""All engine workers, one per model. ``EnginePool.generate`` is what the pipeline calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from agent import executable
from agent.engine import frames
from agent.engine.cache_scope import cache_scope, encoder_scope
from agent.engine.choices import generate_choices
from agent.engine.device_verdicts import DeviceVerdicts
from agent.engine.encoder_labels import FOREVER_MS, encoder_scores
from agent.engine.encoder_vectors import encoder_vectors
from agent.engine.model_supervisor import ModelSupervisor
from agent.engine.patience import Patience
from agent.engine.prefix_keeper import PrefixKeeper, PrefixShelf, PrefixStatus
from agent.engine.worker_status import EncoderTraits, WorkerState, WorkerStatus
from agent.errors import EngineFailed, OutriderError
from agent.scores import Scores, Vectors
from agent.settings import EngineSettings
from agent.telemetry import LOG
from agent.types import (
    Delta,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Message,
    ModelFile,
    ModelFormat,
    NamedPrefix,
)

__all__ = ["EnginePool", "Patience", "WorkerState", "WorkerStatus"]


class EnginePool:
    """All workers. ``generate`` is what the pipeline calls."""

    def __init__(
        self,
        settings: EngineSettings,
        resolve: Callable[[str], ModelFile],
        *,
        worker_command: Sequence[str] | None = None,
        patience: Patience | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        prefixes: Sequence[NamedPrefix] = (),
        shelf: PrefixShelf | None = None,
        verdicts: DeviceVerdicts | None = None,
    ) -> None:
        """Take the settings and a way to find model files; nothing is started.

        ``resolve`` maps a name to a verified file and raises ModelNotFound or ModelRejected.
        It may read a whole file, so it is called in a thread. ``prefixes`` are kept ready by
        the workers of their models, and on ``shelf``. ``verdicts`` is what was proved of devices.
        """
        self._settings = settings
        self._resolve = resolve
        self._command = list(worker_command or executable.command("engine-worker"))
        self._patience = patience or Patience()
        self._now_ms = now_ms
        by_model: dict[str, list[NamedPrefix]] = {}
        for prefix in prefixes:
            by_model.setdefault(prefix.model, []).append(prefix)
        self._keepers = {model: PrefixKeeper(named, shelf) for model, named in by_model.items()}
        self._verdicts = verdicts or DeviceVerdicts(None)
        self._models: dict[str, ModelSupervisor] = {}
        self._refused: dict[str, str] = {}
        self._crash_times: dict[str, deque[float]] = {}
        # For each model: finding its file may read the whole of it, and no other model waits for that.
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self, preload: Sequence[str] = ()) -> None:
        """Begin to load these models and return at once.

        A model that is missing is no reason not to start: the status says what is wrong.
        """
        for name in preload:
            try:
                await self._supervisor(name)
            except OutriderError as error:
                LOG.error("model %s cannot be served: %s", name, error)

    async def stop(self, grace_s: float) -> None:
        """Let running requests finish for ``grace_s`` seconds, then end all workers."""
        self._stopped = True
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(model.stop(grace_s) for model in self._models.values()))

    async def generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation, None]:
        """Yield deltas, then exactly one Generation. Closing the iterator cancels."""
        try:
            model = await self._supervisor(request.model)
        except OutriderError as error:
            yield _failed(FailureKind.REJECTED, str(error), request.model, "model")
            return

        def generate(one: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
            left_ms = None if one.deadline_at_ms is None else one.deadline_at_ms - self._now_ms()
            return model.generate(one, left_ms)

        events = generate(request) if request.sampling.drawn == 1 else generate_choices(request, generate)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def score(
        self,
        request: InferenceRequest,
        labels: Sequence[str],
        *,
        messages: Sequence[Message] | None = None,
        offsets: Sequence[float] = (),
        best_only: bool = False,
        hidden: bool = False,
    ) -> Scores:
        """Return the raw log-probability of every label as the answer. Cancelling cancels.

        ``messages`` replace those of the request. ``best_only`` finds the label with the
        highest sum of log-probability and offset and leaves out what cannot win. ``hidden`` asks for
        the hidden state, too; then ``labels`` may be empty.
        """
        try:
            model = await self._supervisor(request.model)
        except OutriderError as error:
            return Scores(failure=Failure(FailureKind.REJECTED, str(error), "model"), model=request.model)
        left_ms = None if request.deadline_at_ms is None else request.deadline_at_ms - self._now_ms()
        if model.format is ModelFormat.ONNX_ENCODER:
            text = (request.messages if messages is None else messages)[-1].content
            scope = encoder_scope(request.cache_salt, self._settings.share_prefixes)
            return await encoder_scores(model, request.model, text, labels, scope, left_ms)
        ask = frames.Score(
            id=0,
            messages=request.messages if messages is None else tuple(messages),
            labels=tuple(labels),
            offsets=tuple(offsets),
            best_only=best_only,
            hidden=hidden,
            scope=cache_scope(request, self._settings.share_prefixes),
        )
        started = time.monotonic()
        scored = await model.score(ask, left_ms)
        status = model.status()
        return Scores(
            logprobs=scored.logprobs,
            token_counts=scored.label_tokens,
            mass=scored.mass,
            best=scored.best,
            hidden=scored.hidden,
            prompt_tokens=scored.prompt_tokens,
            cached_tokens=scored.cached_tokens,
            duration_ms=(time.monotonic() - started) * 1000,
            model=request.model,
            model_digest=status.model_digest,
            runtime=status.runtime,
            failure=scored.failure,
        )

    async def encode(self, model: str, ask: frames.Encode, left_ms: float) -> frames.Encoded:
        """Return the rows or spans of some texts. Problems end in ``failure``; cancelling cancels."""
        try:
            found = await self._supervisor(model)
        except OutriderError as error:
            return frames.Encoded(id=0, failure=Failure(FailureKind.REJECTED, str(error), "model"))
        if found.format is not ModelFormat.ONNX_ENCODER:
            reason = f"model {model} writes; it is no encoder"
            return frames.Encoded(id=0, failure=Failure(FailureKind.REJECTED, reason, "model"))
        return await found.encode(ask, left_ms)

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors:
        """Return the vector of each text. Problems end in ``failure``; cancelling cancels."""
        try:
            found = await self._supervisor(model)
        except OutriderError as error:
            return Vectors(model=model, failure=Failure(FailureKind.REJECTED, str(error), "model"))
        left_ms = FOREVER_MS if deadline_at_ms is None else deadline_at_ms - self._now_ms()
        scope = encoder_scope(None, self._settings.share_prefixes)
        return await encoder_vectors(found, model, texts, scope, left_ms)

    def encoder(self, name: str) -> EncoderTraits | None:
        """Return what a loaded encoder gives; None for any other model, or one that was not loaded yet."""
        model = self._models.get(name)
        return model.traits.encoder if model is not None and model.traits is not None else None

    async def make_ready(self, name: str) -> None:
        """Have a model loaded; return when it can answer. Raises OutriderError when it cannot."""
        model = await self._supervisor(name)
        while model.state is WorkerState.STARTING:
            await model.next_change()
        if model.state in {WorkerState.READY, WorkerState.IDLE}:
            return
        reason = model.status().last_error.partition("\n")[0]
        if self._models.get(name) is model:
            del self._models[name]
        await model.stop(0)
        raise EngineFailed(f"model {name} cannot be loaded: {reason}")

    def retire(self, name: str) -> None:
        """Let the worker of a model leave once nobody uses it any more; a later request loads it again."""
        task = asyncio.create_task(self._retire(name), name=f"retire {name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, name: str) -> None:
        model = self._models.get(name)
        while model is not None and self._models.get(name) is model:
            while model.in_flight:
                await model.next_change()
            # Those that were on their way to it when the traffic was switched still come.
            requests = model.requests
            await asyncio.sleep(self._patience.linger_s)
            if model.requests == requests and self._models.get(name) is model and not self._stopped:
                del self._models[name]
                await model.stop(0)

    def status(self) -> dict[str, WorkerStatus]:
        """Return the state of each model asked for so far, by name."""
        refused = {
            name: WorkerStatus(state=WorkerState.STOPPED, last_error=reason) for name, reason in self._refused.items()
        }
        return refused | {name: model.status() for name, model in self._models.items()}

    def prefixes(self) -> list[PrefixStatus]:
        """Return what an operator sees of each named prefix."""
        return [status for keeper in self._keepers.values() for status in keeper.statuses()]

    def _resolved(self, name: str) -> ModelFile:
        """Return the file of a model, with the one that drafts for it. Raises as ``resolve`` does."""
        file = self._resolve(name)
        if name != self._settings.model or not self._settings.draft_model:
            return file
        return msgspec.structs.replace(file, draft=self._resolve(self._settings.draft_model))

    async def _supervisor(self, name: str) -> ModelSupervisor:
        known = self._models.get(name)
        if known is not None and (known.state is not WorkerState.STOPPED or self._stopped):
            return known
        async with self._opening[name]:
            known = self._models.get(name)
            if known is None or (known.state is WorkerState.STOPPED and not self._stopped):
                try:
                    file = await asyncio.to_thread(self._resolved, name)
                except OutriderError as error:
                    self._refused[name] = str(error)
                    raise
                self._refused.pop(name, None)
                crash_times = self._crash_times.setdefault(file.sha256, deque())
                known = ModelSupervisor(
                    file,
                    self._settings,
                    self._command,
                    self._patience,
                    crash_times,
                    lambda: self._resolved(name),
                    self._keepers.get(name) or PrefixKeeper((), None),
                    self._verdicts,
                )
                self._models[name] = known
                if not self._stopped:
                    known.start()
            return known


def _failed(kind: FailureKind, message: str, model: str, param: str = "messages") -> Generation:
    return Generation(model=model, failure=Failure(kind, message, param))
