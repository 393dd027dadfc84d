"""Measuring a model of the store on this device, through the worker that serves and a child that reads texts."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources

import msgspec

from agent import device, executable
from agent.engine.supervisor import EnginePool
from agent.errors import EngineFailed, InvalidRequest
from agent.evaluation import instructions, measure_worker, needles
from agent.evaluation.measure_worker import Text
from agent.identifiers import uuid7
from agent.models.quality import Needles, Quality, Speed, TextFigures
from agent.settings import EngineSettings
from agent.strain import wait_while_strained
from agent.types import Delta, Generation, InferenceRequest, Message, ModelFile, Sampling

SHIPPED = "shipped text"
SPEED_PROMPT_TOKENS = 256
SPEED_ANSWER_TOKENS = 64
_TOKENS_PER_SENTENCE = 13.0  # a first guess

Tell = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    model: ModelFile
    reference: ModelFile | None
    texts: tuple[Text, ...]
    engine: EngineSettings
    longest_context: int  # of the needles, tokens


def shipped_text() -> Text:
    """Return the text that comes with this program: prose, talk, a manual, code, data, figures."""
    return Text(SHIPPED, resources.files("agent.evaluation").joinpath("measuring_text.txt").read_text(encoding="utf-8"))


def measure(plan: Plan, tell: Tell, *, now_ms: int) -> Quality:
    """Measure. Minutes of work; raises OutriderError when the model cannot be loaded or asked."""
    answers = asyncio.run(_ask(plan, tell))
    texts = read_texts(plan, tell)
    return Quality(
        digest=plan.model.sha256,
        measured_at_ms=now_ms,
        machine=device.profile().cpu_model,
        runtime=answers.runtime,
        reference=plan.reference.name if plan.reference and any(text.agreement for text in texts) else None,
        reference_digest=plan.reference.sha256 if plan.reference and any(text.agreement for text in texts) else None,
        texts=texts,
        instructions_followed=answers.followed,
        instructions_asked=len(instructions.INSTRUCTIONS),
        needles=answers.needles,
        speed=answers.speed,
    )


def read_texts(plan: Plan, tell: Tell) -> tuple[TextFigures, ...]:
    """Have a child read the texts with the model, beside the reference if there is one."""
    order = measure_worker.Order(
        model=plan.model,
        reference=plan.reference,
        texts=plan.texts,
        threads=plan.engine.threads or device.profile().decode_threads,
        confine=plan.engine.confine,
    )
    with (
        tempfile.TemporaryFile() as notes,
        subprocess.Popen(
            executable.command("measure-worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=notes
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        result: measure_worker.Result | None = None
        try:
            try:
                child.stdin.write(msgspec.json.encode(order))
                child.stdin.close()
            except BrokenPipeError:
                pass  # its status says more
            for line in child.stdout:
                match msgspec.json.decode(line, type=measure_worker.Event):
                    case measure_worker.Progress(done, total, name):
                        tell(f"{name}: {done} of {total} tokens read")
                    case measure_worker.Paused(reason):
                        tell(f"paused: {reason}")
                    case measure_worker.Failed(message):
                        raise EngineFailed(message)
                    case measure_worker.Result() as result:
                        if result.remark:
                            tell(f"no comparison: {result.remark}")
        finally:
            if result is None:
                child.kill()
        status = child.wait()
        if result is None or status:
            notes.seek(0)
            last = notes.read().decode("utf-8", "replace").strip().splitlines()[-3:]
            raise EngineFailed(f"the process that reads texts ended with status {status}: {' | '.join(last)[-400:]}")
        return result.texts


class _Answers(msgspec.Struct):
    runtime: str
    followed: int
    needles: tuple[Needles, ...]
    speed: Speed


async def _ask(plan: Plan, tell: Tell) -> _Answers:
    """Ask the worker that serves, alone: its speed and memory are measured, too."""
    context = min(plan.longest_context, plan.model.context_tokens)
    engine = msgspec.structs.replace(plan.engine, parallel=1, context_tokens=context, idle_unload_s=0.0)
    pool = EnginePool(engine, lambda _: plan.model)
    asking = _Asking(pool, plan.model.name, tell)
    try:
        followed = 0
        for number, instruction in enumerate(instructions.INSTRUCTIONS, 1):
            answer = await asking.ask((Message("user", instruction.question),), instructions.ANSWER_TOKENS)
            followed += instruction.is_followed_by(answer.text)
            tell(f"instructions: {number} of {len(instructions.INSTRUCTIONS)} asked, {followed} followed")
        speed = await _speed(asking, pool)
        found = await _needles(asking, context, tell)
        return _Answers(pool.status()[plan.model.name].runtime, followed, found, speed)
    finally:
        await pool.stop(0)


class _Asking:
    def __init__(self, pool: EnginePool, model: str, tell: Tell) -> None:
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


async def _speed(asking: _Asking, pool: EnginePool) -> Speed:
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


async def _needles(asking: _Asking, context: int, tell: Tell) -> tuple[Needles, ...]:
    found: list[Needles] = []
    per_sentence = _TOKENS_PER_SENTENCE
    for length in [length for length in needles.LENGTHS if length <= context]:
        hits = prompt_tokens = 0
        asked = needles.questions(length, per_sentence)
        for question in asked:
            answer = await asking.ask(question.messages, needles.ANSWER_TOKENS)
            prompt_tokens = max(prompt_tokens, answer.prompt_tokens)
            hits += question.answer in answer.text
        found.append(Needles(prompt_tokens, hits, len(asked)))
        tell(f"needles: {hits} of {len(asked)} found in {prompt_tokens} tokens")
        if not found[-1].passed:
            break
        per_sentence *= max(1.0, prompt_tokens / (length - needles.ANSWER_TOKENS - 8))
    return tuple(found)


def reference_problem(model: ModelFile, reference: ModelFile) -> InvalidRequest | None:
    """Return why a model cannot be compared with this one, or None."""
    if model.sha256 == reference.sha256:
        return InvalidRequest(f"{reference.name} is the same file as {model.name}", param="against")
    return None
