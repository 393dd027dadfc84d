"""Choosing one of given labels: a local answer made of scores instead of drawn tokens.

A task that was taught answers by its head; the language model is asked only where the head reads
its label scores. Without a head, the scores of inputs without content correct those of the
others; they are kept per model, prompt and set of labels: a stream of requests of one kind pays
for them once. A task corrects by the mean over its earlier inputs as soon as there are enough.
How like the input each label is counts beside that, where the embedded encoder is at hand.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent.confidence import labels as label_confidence
from agent.confidence.heads import AppliedHead, Feature
from agent.label_likeness import LabelLikeness, Likeness, label_texts
from agent.likelihoods import LabelScores
from agent.scores import Scores, Vectors
from agent.task_book import TaskBook
from agent.tasks import INSTRUCTION
from agent.types import Failure, FailureKind, Generation, InferenceRequest, Message

MOST_KEPT = 1024  # sets of content-free scores

_Rows = tuple[tuple[float, ...], ...]


class LabelEngine(Protocol):
    """Where labels are scored and texts become vectors. Problems end in ``failure``, they do not raise."""

    async def score(
        self,
        request: InferenceRequest,
        labels: Sequence[str],
        *,
        messages: Sequence[Message] | None = None,
        hidden: bool = False,
    ) -> Scores: ...

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors: ...


def sorting(text: str, labels: Sequence[str]) -> tuple[Message, ...]:
    """Return the prompt that has a model sort a text. The labels stand in an order of their own, whatever the caller's."""
    return Message("system", INSTRUCTION + "\n".join(sorted(labels))), Message("user", text)


class Classifier:
    """Scores the labels of requests and chooses the likeliest."""

    def __init__(
        self, engine: LabelEngine, tasks: TaskBook | None = None, likeness: LabelLikeness | None = None
    ) -> None:
        """Without ``tasks`` every request stands alone; without ``likeness`` the language model is asked alone."""
        self._engine = engine
        self._tasks = tasks
        self._likeness = likeness
        self._content_free: OrderedDict[bytes, _Rows] = OrderedDict()

    async def run(self, request: InferenceRequest) -> Generation:
        """Return the chosen label as text, with the scores of all. Problems end in ``failure``."""
        head = self._tasks.head(request.task) if self._tasks else None
        if head is not None and sorted(request.labels) == list(head.head.labels):
            told = await self._by_head(request, head)
            if told is not None:
                return told
        return await self._by_scores(request)

    async def _by_scores(self, request: InferenceRequest) -> Generation:
        labels = sorted(request.labels)
        scores = await self._engine.score(request, labels)
        if failure := scores.failure:
            if failure.param == "messages":  # made of the caller's input
                failure = msgspec.structs.replace(failure, param="")
            return _generation(scores, scores.duration_ms, failure)
        figures = _complete(scores)
        tasks = self._tasks if request.task and not scores.trained else None
        earlier = tasks.earlier(request, labels, scores.model_digest) if tasks else ()
        rows: _Rows = ()
        spent_ms = 0.0
        if not earlier and not scores.trained:
            found = await self._without_content(request, labels, scores)
            if isinstance(found, Failure):
                return _generation(scores, scores.duration_ms, found)
            rows, spent_ms = found
        if request.task and tasks:
            tasks.observe(request.task, labels, figures, scores.model_digest)
        like = Likeness() if scores.trained else await self._likeness_of(request, labels)
        of = {label: index for index, label in enumerate(labels)}
        order = [of[label] for label in request.labels]
        told = LabelScores(
            logprobs=tuple(figures[index] for index in order),
            token_counts=tuple(scores.token_counts[index] for index in order),
            mass=scores.mass or 0.0,
            content_free=tuple(tuple(row[index] for index in order) for row in rows),
            earlier=tuple(earlier[index] for index in order) if earlier else (),
            trained=scores.trained,
            likeness=tuple(like.figures[index] for index in order) if like.figures else (),
            encoder=like.encoder_digest if like.figures else "",
        )
        spent_ms += scores.duration_ms + like.duration_ms
        return _chosen(request, told, _generation(scores, spent_ms, None))

    async def _likeness_of(self, request: InferenceRequest, labels: Sequence[str]) -> Likeness:
        text = request.messages[-1].content
        if self._likeness is None or not text.strip():  # the vector of nothing is like some label, too
            return Likeness()
        described = self._tasks.spec(request.task).labels if self._tasks and request.task else {}
        texts = label_texts(labels, described)
        return await self._likeness.of(text, texts, deadline_at_ms=request.deadline_at_ms)

    async def _by_head(self, request: InferenceRequest, head: AppliedHead) -> Generation | None:
        """Return the head's choice; None where an encoder or model is not the one that it was taught with."""
        about = head.head
        vectors, scores = Vectors(), Scores()
        spent_ms = 0.0
        parts = about.feature.parts
        text = request.messages[-1].content
        if Feature.EMBEDDING in parts:
            vectors = await self._engine.embed(about.encoder, [text], deadline_at_ms=request.deadline_at_ms)
            spent_ms += vectors.duration_ms
            if vectors.failure:
                return _generation(vectors, spent_ms, vectors.failure)
            if vectors.model_digest != about.encoder_digest:
                return None
        asks_model = bool(parts & {Feature.HIDDEN, Feature.SCORES})
        if asks_model:
            labels = about.labels if Feature.SCORES in parts else ()
            scores = await self._engine.score(request, labels, hidden=Feature.HIDDEN in parts)
            spent_ms += scores.duration_ms
            if scores.failure:
                return _generation(scores, spent_ms, scores.failure)
            if scores.model_digest != about.model_digest or (Feature.HIDDEN in parts and not scores.hidden):
                return None
        state = array("f", scores.hidden)
        figures = _complete(scores)
        vector = vectors.vectors[0] if vectors.vectors else ()
        found = dict(zip(about.labels, head.probabilities(text, vector, figures, state), strict=False))
        by_label = {label: index for index, label in enumerate(about.labels)}
        order = [by_label[label] for label in request.labels]
        told = LabelScores(
            logprobs=tuple(figures[index] for index in order) if figures else (),
            token_counts=tuple(scores.token_counts[index] for index in order) if figures else (),
            mass=scores.mass,
            probabilities=tuple(found[label] for label in request.labels) if found else (),
            head=head.id,
        )
        return _chosen(request, told, _generation(scores if asks_model else vectors, spent_ms, None))

    async def _without_content(
        self, request: InferenceRequest, labels: list[str], scores: Scores
    ) -> tuple[_Rows, float] | Failure:
        key = _key(request, labels, scores.model_digest)
        if key in self._content_free:
            self._content_free.move_to_end(key)
            return self._content_free[key], 0.0
        rows = []
        spent_ms = 0.0
        for text in label_confidence.CONTENT_FREE:
            found = await self._engine.score(request, labels, messages=_with_input(request.messages, text))
            if found.failure:
                return found.failure
            rows.append(_complete(found))
            spent_ms += found.duration_ms
        self._content_free[key] = tuple(rows)
        while len(self._content_free) > MOST_KEPT:
            self._content_free.popitem(last=False)
        return tuple(rows), spent_ms


def _chosen(request: InferenceRequest, told: LabelScores, generation: Generation) -> Generation:
    probabilities = label_confidence.distribution(told)
    if not probabilities:
        failure = Failure(FailureKind.CRASH, "the scores of the labels are not finite")
        return msgspec.structs.replace(generation, failure=failure)
    text = request.labels[label_confidence.best(request.labels, probabilities)]
    return msgspec.structs.replace(generation, text=text, finish_reason="stop", label_scores=told)


def _with_input(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """Put another text in the place of the last message: that is what is classified."""
    return (*messages[:-1], msgspec.structs.replace(messages[-1], content=text))


def _key(request: InferenceRequest, labels: list[str], digest: str) -> bytes:
    """Name the scores that are the same for all inputs. A hash: no text is kept in memory for it."""
    shape = (request.model, digest, _with_input(request.messages, ""), labels)
    return hashlib.sha256(msgspec.msgpack.encode(shape)).digest()


def _complete(scores: Scores) -> tuple[float, ...]:
    return tuple(float("-inf") if figure is None else figure for figure in scores.logprobs)


def _generation(of: Scores | Vectors, duration_ms: float, failure: Failure | None) -> Generation:
    return Generation(
        prompt_tokens=of.prompt_tokens,
        cached_tokens=of.cached_tokens if isinstance(of, Scores) else 0,
        duration_ms=duration_ms,
        model=of.model,
        model_digest=of.model_digest,
        runtime=of.runtime,
        failure=failure,
    )
