"""Written answers of tasks: behind the demonstrations that teaching kept, appraised by what it fitted.

What is shown goes to the local model only: the request itself, which a target may be sent, stays as it came.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from agent.appraisal import Appraisal, FieldConfidence
from agent.confidence import checks
from agent.confidence.answer_features import FIELD_FEATURES, VERSION, Shown, features, field_features
from agent.confidence.appraisers import MOST_SAMPLES, SAMPLE_TEMPERATURE, Appraiser, field_figures
from agent.confidence.fields import FieldJudge
from agent.demonstrations import Demonstration, nearest, with_demonstrations
from agent.scores import Vectors
from agent.task_book import TaskBook
from agent.tasks import TaskKind
from agent.types import Confidence, Delta, Generation, InferenceRequest, RequestKind

SEED = 0  # of samples: the same request has the same ones


class WritingEngine(Protocol):
    """Where text is generated and texts become vectors. Problems end in ``failure``, they do not raise."""

    def generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        """Yield deltas, then exactly one Generation. Closing the iterator cancels."""
        ...

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors: ...


class Example(msgspec.Struct, frozen=True):
    """What a request is answered behind, in place of what the task has kept."""

    shown: tuple[Demonstration, ...] = ()
    closeness: float = 0.0
    samples: int = 0


class TaskWriter:
    """Has requests answered, those of taught tasks as they were taught."""

    def __init__(self, engine: WritingEngine, tasks: TaskBook, judge_fields: FieldJudge) -> None:
        self._engine = engine
        self._tasks = tasks
        self._judge_fields = judge_fields

    async def generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        """Yield deltas, then exactly one Generation, with its appraisal where the task was taught."""
        appraiser = self._tasks.appraiser(request.task)
        if appraiser is None or is_drawn(request) or request.kind is not RequestKind.CHAT:
            async for event in self._written(request):
                yield event
            return
        shown: tuple[Demonstration, ...] | None = ()
        closeness = 0.0
        if kept := appraiser.demonstrations:
            vectors = await self._engine.embed(kept.encoder, [about(request)], deadline_at_ms=request.deadline_at_ms)
            if vectors.failure or vectors.model_digest != kept.encoder_digest:
                shown = None  # nothing of it was calibrated: answered as a task that was not taught
            else:
                table = self._tasks.demonstration_vectors(appraiser)
                near = nearest(vectors.vectors[0], table, kept.count)
                shown = tuple((kept.inputs[index], kept.answers[index]) for index in near)
                closeness = sum(a * b for a, b in zip(vectors.vectors[0], table[near[-1]], strict=True))
        asked = _behind(request, shown or ())
        async for event in self._written(asked):
            if isinstance(event, Generation) and shown is not None:
                yield await self._appraised(asked, event, appraiser, Shown(tuple(a for _, a in shown), closeness))
            else:
                yield event

    async def draft(self, request: InferenceRequest, example: Example) -> Generation:
        """Return the answer behind these demonstrations, with its figures and nobody's judgement: what teaching asks for."""
        asked = _behind(request, example.shown)
        spec = self._tasks.spec(request.task or "")
        shown = Shown(tuple(answer for _, answer in example.shown), example.closeness) if example.shown else None
        generation = Generation()
        async for event in self._written(asked):
            if isinstance(event, Generation):
                generation = event
        source = about(request)
        found = features(spec.kind, source, generation, shown)
        agreement = None
        if example.samples and found:
            agreement = await self._agreement(asked, generation, example.samples)
        fields = field_features(source, generation) if spec.kind is TaskKind.EXTRACT and found else {}
        told = Appraisal(features=found, agreement=agreement, fields=fields)
        return msgspec.structs.replace(generation, appraisal=told)

    async def _written(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                yield self._judge_fields(request, event) if isinstance(event, Generation) else event

    async def _appraised(
        self, asked: InferenceRequest, generation: Generation, appraiser: Appraiser, shown: Shown
    ) -> Generation:
        spec = self._tasks.spec(appraiser.task)
        if generation.failure or not fits(appraiser, generation):
            return generation
        source = about(asked)
        found = features(spec.kind, source, generation, shown if appraiser.demonstrations else None)
        probability = appraiser.answer.probability(found) if found else None
        agreement = None
        if probability is not None and appraiser.is_grey(probability) and appraiser.sampled is not None:
            agreement = await self._agreement(asked, generation, appraiser.samples)
            if agreement is not None:
                probability = appraiser.sampled.probability({**found, "agreement": agreement})
        told = Appraisal(appraiser=appraiser.id, probability=probability, features=found, agreement=agreement)
        fields = generation.fields
        if appraiser.fields is not None:
            rows = field_features(source, generation)
            fields = {pointer: _field(appraiser, pointer, rows.get(pointer), one) for pointer, one in fields.items()}
        return msgspec.structs.replace(generation, appraisal=told, fields=fields)

    async def _agreement(self, asked: InferenceRequest, generation: Generation, samples: int) -> float | None:
        """Return the share of drawn answers that are the same as the likeliest one; None where there are none."""
        drawn = msgspec.structs.replace(
            asked.sampling, temperature=SAMPLE_TEMPERATURE, seed=SEED, n=min(samples, MOST_SAMPLES)
        )
        async with aclosing(self._engine.generate(msgspec.structs.replace(asked, sampling=drawn))) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return None if event.failure else agreement_of(generation, event)
        return None


def agreement_of(generation: Generation, drawn: Generation) -> float:
    """Return the share of the drawn answers that say what the likeliest one says."""
    said = [_said(drawn.text, drawn.tool_calls), *(_said(one.text, one.tool_calls) for one in drawn.others)]
    return said.count(_said(generation.text, generation.tool_calls)) / len(said)


def _said(text: str, calls: Sequence[object]) -> str:
    told = [(getattr(call, "name", ""), checks.json_of(getattr(call, "arguments", ""))) for call in calls]
    return f"{checks.normalised(text)}{told}"


def _behind(request: InferenceRequest, shown: Sequence[Demonstration]) -> InferenceRequest:
    if not shown:
        return request
    return msgspec.structs.replace(request, messages=with_demonstrations(request.messages, shown))


def _field(appraiser: Appraiser, pointer: str, row: Sequence[float] | None, found: FieldConfidence) -> FieldConfidence:
    if row is None or appraiser.fields is None:
        return msgspec.structs.replace(found, score=None)
    told = dict.fromkeys(appraiser.fields.names, 0.0) | field_figures(row, FIELD_FEATURES, pointer)
    return msgspec.structs.replace(found, score=appraiser.fields.probability(told))


def is_drawn(request: InferenceRequest) -> bool:
    """Whether chance has a part in the answer."""
    return bool(request.sampling.temperature) or request.sampling.drawn > 1


def about(request: InferenceRequest) -> str:
    """Return the text that an answer is about: the last message of the user."""
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")


def fits(appraiser: Appraiser, generation: Generation) -> bool:
    """Whether an appraiser was taught by answers of this very model and runtime."""
    found = (generation.model_digest, generation.runtime, VERSION)
    return found == (appraiser.model_digest, appraiser.runtime, appraiser.version)


def judge(confidence: Confidence, generation: Generation) -> Confidence:
    """Return how sure a task's written answer is: as its appraiser says, else as before; 0 for what cannot be right."""
    appraisal = generation.appraisal
    if appraisal is not None and appraisal.appraiser:
        told = msgspec.structs.replace(
            confidence,
            score=appraisal.probability,
            raw=appraisal.probability,
            estimator=appraisal.estimator,
            signals=appraisal.signals,
        )
    else:
        told = confidence
    if told.score is None or generation.failure:
        return told
    # A call has no text of its own.
    wrong = checks.fault(generation.text or ("-" if generation.tool_calls else ""), incomplete=generation.incomplete)
    return msgspec.structs.replace(told, score=0.0, fault=wrong) if wrong else told
