"""Asking the worker that serves, one question after the other, and how fast it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from agent.engine.supervisor import EnginePool
from agent.errors import EngineFailed
from agent.identifiers import uuid7
from agent.models.quality import Speed
from agent.settings import EngineSettings
from agent.strain import wait_while_strained
from agent.types import Delta, Generation, InferenceRequest, Message, ModelFile, Sampling

SPEED_PROMPT_TOKENS = 256
SPEED_ANSWER_TOKENS = 64

Tell = Callable[[str], None]


class Asking:
    """One model of a pool, asked by one."""

    def __init__(self, pool: EnginePool, model: str, tell: Tell) -> None:
        """``tell`` is given the reason when the device has to rest."""
        self._pool = pool
        self._model = model
        self._tell = tell
        self.first_token_s = 0.0

    async def ask(self, messages: Sequence[Message], tokens: int, *, least: int = 0) -> Generation:
        """Return one greedy answer; ``first_token_s`` is then that of it. Raises EngineFailed."""
        await asyncio.to_thread(wait_while_strained, lambda reason: self._tell(f"paused: {reason}"))
        now_ms = time.time_ns() // 1_000_000
        request = InferenceRequest(
            id=uuid7(now_ms),
            model=self._model,
            messages=tuple(messages),
            sampling=Sampling(max_tokens=tokens, min_tokens=least),
            received_at_ms=now_ms,
        )
        started = time.perf_counter()
        first = None
        ended = Generation()
        async for event in self._pool.generate(request):
            match event:
                case Delta():
                    first = first or time.perf_counter()
                case Generation():
                    ended = event
        if ended.failure:
            raise EngineFailed(f"model {self._model}: {ended.failure.message}")
        self.first_token_s = (first or time.perf_counter()) - started
        return ended


async def speed_of(asking: Asking, pool: EnginePool) -> Speed:
    """Have the one loaded model answer a prompt that nothing of is cached; return what that took."""
    prompt = " ".join(f"{number}." for number in range(SPEED_PROMPT_TOKENS // 3))
    started = time.perf_counter()
    answer = await asking.ask(
        (Message("user", f"Go on counting: {prompt}"),), SPEED_ANSWER_TOKENS, least=SPEED_ANSWER_TOKENS
    )
    total_s = time.perf_counter() - started
    decoding_s = max(1e-6, total_s - asking.first_token_s)
    (status,) = pool.status().values()
    return Speed(
        tokens_per_second=(answer.output_tokens - 1) / decoding_s,
        first_token_ms=asking.first_token_s * 1000,
        prompt_tokens=answer.prompt_tokens,
        memory_bytes=status.rss_bytes or 0,
    )


def measure_speed(model: ModelFile, engine: EngineSettings, tell: Tell) -> Speed:
    """Load a model alone and see how fast it is. Seconds; raises OutriderError when it cannot be loaded or asked."""

    async def run() -> Speed:
        pool = EnginePool(_alone(engine), lambda _: model)
        try:
            asking = Asking(pool, model.name, tell)
            await asking.ask((Message("user", "Hello"),), 1)  # the weights are read from disk only once
            return await speed_of(asking, pool)
        finally:
            await pool.stop(0)

    return asyncio.run(run())


def ask_once(model: ModelFile, engine: EngineSettings, question: str, tokens: int, tell: Tell) -> str:
    """Load a model and return its answer to one question. Raises OutriderError as ``measure_speed`` does."""

    async def run() -> str:
        pool = EnginePool(_alone(engine), lambda _: model)
        try:
            return (await Asking(pool, model.name, tell).ask((Message("user", question),), tokens)).text
        finally:
            await pool.stop(0)

    return asyncio.run(run())


def _alone(engine: EngineSettings) -> EngineSettings:
    return msgspec.structs.replace(engine, parallel=1, idle_unload_s=0.0)
