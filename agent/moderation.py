"""A look at what a request says before anything is made of it, by a task that sorts texts.

It comes before the model writes and before a row is accepted for a target. It fails closed: while
the task cannot judge (not taught, its encoder is away), nothing is answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from agent.confidence import labels as label_confidence
from agent.errors import EngineFailed, OutriderError, RequestError
from agent.strictness import stricter
from agent.task_book import TaskBook
from agent.telemetry import METRICS
from agent.text_settings import ModerationAction, ModerationSettings
from agent.types import EgressPolicy, Generation, InferenceRequest, RequestKind

PIECE_CHARACTERS = 600  # an encoder reads the beginning of a text only; about 150 tokens
MOST_PIECES = 64  # in one request; of a longer one nobody knows what the rest says


class ContentRefused(RequestError):
    """The text is of a kind that the configuration has refused."""

    code = "content_filter"


class Sorter(Protocol):
    """What answers a request of kind classify."""

    async def run(self, request: InferenceRequest) -> Generation: ...


class Moderator:
    """Judges the texts of users in a request."""

    def __init__(self, settings: ModerationSettings, sorter: Sorter, tasks: TaskBook) -> None:
        self._settings = settings
        self._sorter = sorter
        self._tasks = tasks

    async def passed(self, request: InferenceRequest) -> InferenceRequest:
        """Return the request, with a stricter egress where it is held.

        Raises ContentRefused, or EngineFailed while nothing can be judged. A request that is to be
        sorted is never refused: sorting is how one deals with such texts.
        """
        settings = self._settings
        refuses = settings.action is ModerationAction.REFUSE
        if not settings.task or (refuses and request.kind is RequestKind.CLASSIFY):
            return request
        label, probability = await self._worst(request)
        outcome = "passed" if label is None else "refused" if refuses else "held"
        METRICS.count("moderated", outcome=outcome, label=label or "")
        if label is None:
            return request
        if refuses:
            raise ContentRefused(
                f"the text is refused by the task {settings.task}: {label} ({probability:.0%}); "
                "see [moderation] of the configuration",
                param="messages",
            )
        return msgspec.structs.replace(request, egress=stricter(EgressPolicy.APPROVE, request.egress))

    async def _worst(self, request: InferenceRequest) -> tuple[str | None, float]:
        """Return the likeliest forbidden label of the piece that is worst, and how likely that piece is forbidden."""
        found = list(_pieces(request))
        if len(found) > MOST_PIECES or (request.prompt is not None and not isinstance(request.prompt, str)):
            return "unread", 1.0  # too long, or tokens of some model: what it says is not known
        worst: tuple[str | None, float] = (None, 0.0)
        for piece in found:
            told = await self._probabilities(request, piece)
            forbidden = {label: share for label, share in told.items() if label not in self._settings.allowed}
            share = sum(forbidden.values())
            if share >= self._settings.least and share > worst[1]:
                worst = max(sorted(forbidden), key=lambda label: forbidden[label]), share
        return worst

    async def _probabilities(self, request: InferenceRequest, text: str) -> dict[str, float]:
        name = self._settings.task
        try:
            spec, head = self._tasks.spec(name), self._tasks.head(name)
        except OutriderError as error:
            raise EngineFailed(f"nothing is answered while moderation cannot judge: {error}") from error
        if head is None:
            raise EngineFailed(f"nothing is answered while moderation cannot judge: task {name} was not taught")
        if strange := [label for label in self._settings.allowed if label not in spec.names]:
            raise EngineFailed(f"moderation.allowed: task {name} has no label {strange[0]!r}")
        asked = InferenceRequest(
            id=request.id,
            kind=RequestKind.CLASSIFY,
            model=head.head.model or request.model,
            messages=spec.messages(text),
            labels=spec.names,
            task=name,
            received_at_ms=request.received_at_ms,
            deadline_at_ms=request.deadline_at_ms,
        )
        generation = await self._sorter.run(asked)
        scores = generation.label_scores
        if generation.failure or scores is None or scores.head != head.id:
            why = (
                generation.failure.message if generation.failure else "it was taught with another model: teach it again"
            )
            raise EngineFailed(f"nothing is answered while moderation cannot judge: task {name}: {why}")
        return dict(zip(spec.names, label_confidence.distribution(scores), strict=True))


def _pieces(request: InferenceRequest) -> Iterator[str]:
    """Yield what users say, in pieces of whole words."""
    texts = [message.content for message in request.messages if message.role == "user"]
    for text in texts:
        left = text.strip()
        while left:
            end = len(left) if len(left) <= PIECE_CHARACTERS else left.rfind(" ", 1, PIECE_CHARACTERS)
            end = end if end > 0 else PIECE_CHARACTERS
            yield left[:end]
            left = left[end:].lstrip()
