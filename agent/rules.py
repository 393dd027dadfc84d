"""Routing rules as data: what must hold of a request, and which rule is the first that does. Pure.

Everything that a rule looks at in a text takes linear time. What needs a model (the topic of a
text) is found by others and passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from agent.language import KNOWN, language_of
from agent.linear_regex import LinearRegex, UnsafePattern
from agent.rule_settings import RuleSettings, TopicSettings
from agent.token_estimate import input_tokens
from agent.types import Generation, InferenceRequest

UNKNOWN_LANGUAGE = "unknown"
CRITICALITY, HIGH = "criticality", frozenset({"high", "critical"})
_READ = frozenset({"user", "tool"})  # whose words are looked at: not the system's, not the model's own


class Topic(msgspec.Struct, frozen=True):
    """What a taught task says of a text."""

    label: str
    probability: float
    familiar: bool  # like what taught the head; else the label says little


class Facts(msgspec.Struct, frozen=True):
    """What is known of a request before anybody answers it."""

    prompt_tokens: int = 0  # about, by its length
    texts: frozenset[str] = frozenset()  # names of the rules whose words, expression and language hold
    topics: Mapping[str, Topic] = {}  # by task; those that could not be told are not in it


class Outcome(msgspec.Struct, frozen=True):
    """What came of asking the local model."""

    score: float | None = None
    generation: Generation | None = None

    @property
    def is_valid(self) -> bool:
        """Whether there is an answer, whole and in the form that was asked for."""
        generation = self.generation
        return generation is not None and generation.failure is None and not generation.incomplete


class Rulebook:
    """The rules of one configuration, ready to be asked. Immutable."""

    def __init__(self, rules: Sequence[RuleSettings] = ()) -> None:
        """Raises UnsafePattern (a ValueError) that names the rule."""
        self.settings = tuple(rules)
        self._rules = tuple(_Rule(one) for one in rules)

    @property
    def topics(self) -> frozenset[str]:
        """The tasks that some rule asks for the topic of a text."""
        return frozenset(one.topic.task for one in self.settings if one.topic is not None)

    def look(self, request: InferenceRequest) -> Facts:
        """Return what the text of a request says. Linear in its length, so for a long text not for an event loop."""
        if not self._rules:
            return Facts()
        text = text_of(request)
        language = language_of(text) if any(one.settings.language for one in self._rules) else None
        found = {one.settings.name for one in self._rules if one.text_holds(text, language)}
        return Facts(prompt_tokens=input_tokens(request), texts=frozenset(found))

    def before(self, request: InferenceRequest, facts: Facts) -> RuleSettings | None:
        """Return the first rule that holds before the local model is asked."""
        for rule in self._rules:
            if not rule.settings.is_after and rule.holds(request, facts):
                return rule.settings
        return None

    def after(self, request: InferenceRequest, facts: Facts, outcome: Outcome) -> RuleSettings | None:
        """Return the first rule that holds once the local model has answered, or has failed to."""
        for rule in self._rules:
            if rule.settings.is_after and rule.holds(request, facts) and rule.holds_after(request, outcome):
                return rule.settings
        return None


class _Rule:
    """One rule with its words and expression compiled."""

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings
        self._words = _any_of(settings.keywords) if settings.keywords else None
        try:
            self._regex = LinearRegex(settings.regex, ignore_case=True) if settings.regex else None
        except UnsafePattern as error:
            raise UnsafePattern(f"rule {settings.name}: regex: {error}") from error
        if strange := {*settings.language} - KNOWN - {UNKNOWN_LANGUAGE}:
            known = ", ".join(sorted({*KNOWN, UNKNOWN_LANGUAGE}))
            raise UnsafePattern(f"rule {settings.name}: language {min(strange)} is not told apart; known are {known}")

    def text_holds(self, text: str, language: str | None) -> bool:
        """Return whether words, language and expression hold, the cheapest first."""
        wanted = self.settings.language
        if wanted and (language or UNKNOWN_LANGUAGE) not in wanted:
            return False
        if self._words is not None and self._words.search(text) is None:
            return False
        return self._regex is None or self._regex.search(text)

    def holds(self, request: InferenceRequest, facts: Facts) -> bool:
        rule = self.settings
        return (
            (not rule.task or request.task in rule.task)
            and (not rule.key or request.key in rule.key)
            and (not rule.prompt_tokens_over or facts.prompt_tokens > rule.prompt_tokens_over)
            and (not rule.prompt_tokens_under or facts.prompt_tokens < rule.prompt_tokens_under)
            and (rule.tools is None or rule.tools is bool(request.tools and request.tools.callable))
            and (rule.images is None or rule.images is request.has_media)
            and all(_has(request.metadata, name, value) for name, value in rule.metadata.items())
            and rule.name in facts.texts
            and (rule.topic is None or _on_topic(rule.topic, facts.topics.get(rule.topic.task)))
        )

    def holds_after(self, request: InferenceRequest, outcome: Outcome) -> bool:
        rule, score = self.settings, outcome.score
        failure = outcome.generation.failure if outcome.generation else None
        critical = request.metadata.get(CRITICALITY, "").casefold() in HIGH
        return (
            (rule.confidence_below is None or score is None or score < rule.confidence_below)
            and (rule.confidence_from is None or (score is not None and score >= rule.confidence_from))
            and (rule.valid is None or rule.valid is outcome.is_valid)
            and (not rule.failure or (failure is not None and failure.kind in rule.failure))
            and (rule.critical is None or rule.critical is critical)
        )


def text_of(request: InferenceRequest) -> str:
    """Return the words that rules look at: those of users and tools."""
    return "\n".join(_words_of(request))


def _words_of(request: InferenceRequest) -> Iterator[str]:
    for message in request.messages:
        if message.role in _READ:
            yield message.content


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Match any of some words as whole ones. Literal texts only: nothing to go back and forth over."""
    ordered = sorted({word.strip() for word in words}, key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)", re.IGNORECASE)


def _has(metadata: Mapping[str, str], name: str, value: str) -> bool:
    return name in metadata and value in {"*", metadata[name]}


def _on_topic(wanted: TopicSettings, topic: Topic | None) -> bool:
    """What cannot be told, or is unlike all that taught the head, is as the rule says."""
    if topic is None or not topic.familiar:
        return wanted.unfamiliar
    return topic.label in wanted.labels and topic.probability >= wanted.confidence


NO_RULES = Rulebook()
NO_FACTS = Facts()
