"""Choosing one of given labels: a local answer made of scores instead of drawn tokens.

The scores of inputs without content, by which the others are corrected, are kept per model,
prompt and set of labels: a stream of requests of one kind pays for them once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent.confidence import labels as label_confidence
from agent.scores import Scores
from agent.types import Failure, FailureKind, Generation, InferenceRequest, LabelScores, Message

INSTRUCTION = "Sort the text that the user sends. Reply with exactly one of these labels and nothing else:\n"
MOST_KEPT = 1024  # sets of content-free scores

_Rows = tuple[tuple[float, ...], ...]


class LabelEngine(Protocol):
    """Where labels are scored. Problems end in ``Scores.failure``, they do not raise."""

    async def score(
        self, request: InferenceRequest, labels: Sequence[str], *, messages: Sequence[Message] | None = None
    ) -> Scores: ...


def sorting(text: str, labels: Sequence[str]) -> tuple[Message, ...]:
    """Return the prompt that has a model sort a text. The labels stand in an order of their own, whatever the caller's."""
    return Message("system", INSTRUCTION + "\n".join(sorted(labels))), Message("user", text)


class Classifier:
    """Scores the labels of requests and chooses the likeliest."""

    def __init__(self, engine: LabelEngine) -> None:
        self._engine = engine
        self._content_free: OrderedDict[bytes, _Rows] = OrderedDict()

    async def run(self, request: InferenceRequest) -> Generation:
        """Return the chosen label as text, with the scores of all. Problems end in ``failure``."""
        labels = sorted(request.labels)
        scores = await self._engine.score(request, labels)
        if failure := scores.failure:
            if failure.param == "messages":  # made of the caller's input
                failure = msgspec.structs.replace(failure, param="")
            return _generation(scores, scores.duration_ms, failure)
        found = ((), 0.0) if scores.trained else await self._without_content(request, labels, scores)
        if isinstance(found, Failure):
            return _generation(scores, scores.duration_ms, found)
        rows, spent_ms = found
        of = {label: index for index, label in enumerate(labels)}
        order = [of[label] for label in request.labels]
        figures = _complete(scores)
        told = LabelScores(
            logprobs=tuple(figures[index] for index in order),
            token_counts=tuple(scores.token_counts[index] for index in order),
            mass=scores.mass or 0.0,
            content_free=tuple(tuple(row[index] for index in order) for row in rows),
            trained=scores.trained,
        )
        generation = _generation(scores, scores.duration_ms + spent_ms, None)
        probabilities = label_confidence.distribution(told)
        if not probabilities:
            failure = Failure(FailureKind.CRASH, "the model's scores of the labels are not finite")
            return msgspec.structs.replace(generation, failure=failure)
        text = request.labels[label_confidence.best(request.labels, probabilities)]
        return msgspec.structs.replace(generation, text=text, finish_reason="stop", label_scores=told)

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


def _with_input(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """Put another text in the place of the last message: that is what is classified."""
    return (*messages[:-1], msgspec.structs.replace(messages[-1], content=text))


def _key(request: InferenceRequest, labels: list[str], digest: str) -> bytes:
    """Name the scores that are the same for all inputs. A hash: no text is kept in memory for it."""
    shape = (request.model, digest, _with_input(request.messages, ""), labels)
    return hashlib.sha256(msgspec.msgpack.encode(shape)).digest()


def _complete(scores: Scores) -> tuple[float, ...]:
    return tuple(float("-inf") if figure is None else figure for figure in scores.logprobs)


def _generation(scores: Scores, duration_ms: float, failure: Failure | None) -> Generation:
    return Generation(
        prompt_tokens=scores.prompt_tokens,
        cached_tokens=scores.cached_tokens,
        duration_ms=duration_ms,
        model=scores.model,
        model_digest=scores.model_digest,
        runtime=scores.runtime,
        failure=failure,
    )
