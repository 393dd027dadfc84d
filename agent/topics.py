"""What rules need to know of a request before anybody answers it: its words, and what taught tasks say of it."""

from __future__ import annotations

import asyncio

import msgspec

from agent.classification import LabelEngine
from agent.confidence.heads import Feature
from agent.rules import Facts, Rulebook, Topic, text_of
from agent.task_book import TaskBook
from agent.types import InferenceRequest

LONG_TEXT = 4096  # characters, from which on searching is done beside the event loop


class Topics:
    """Finds the facts that rules ask for. Asks an encoder only where a rule needs it."""

    def __init__(self, engine: LabelEngine, tasks: TaskBook) -> None:
        self._engine = engine
        self._tasks = tasks

    async def look(self, request: InferenceRequest, rules: Rulebook) -> Facts:
        """Return what the rules need. What cannot be told of a topic is left out: the rule says what holds then."""
        if not rules.settings:
            return Facts()
        if sum(len(message.content) for message in request.messages) < LONG_TEXT:
            facts = rules.look(request)
        else:
            facts = await asyncio.to_thread(rules.look, request)
        topics = {}
        for task in sorted(rules.topics):
            topic = await self._topic(task, request)
            if topic is not None:
                topics[task] = topic
        return msgspec.structs.replace(facts, topics=topics)

    async def _topic(self, task: str, request: InferenceRequest) -> Topic | None:
        """Return what a task's head says of the words; None without a head that reads vectors, or without its encoder."""
        head = self._tasks.head(task)
        if head is None or head.head.feature is not Feature.EMBEDDING:
            return None
        about = head.head
        text = text_of(request)
        vectors = await self._engine.embed(about.encoder, [text], deadline_at_ms=request.deadline_at_ms)
        if vectors.failure or vectors.model_digest != about.encoder_digest:
            return None
        probabilities = head.probabilities(text, vectors.vectors[0])
        if not probabilities:
            return None
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return Topic(about.labels[best], probabilities[best], head.is_familiar(vectors.vectors[0]))
