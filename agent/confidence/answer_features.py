"""What one pass says of a written answer: figures of its tokens, and checks of its text. Pure.

Of a text all tokens count, with the one that ended it: for short answers the sum of the log-probabilities and the
least margin say most, their mean and the first entropy least. Of JSON and of calls only the tokens count that
decided something, the names of functions and the values: what a format forces says nothing. All log-probabilities
are those of the unconstrained distribution.

Sources: sequence log-probability and its quantiles, Gupta et al., "Language Model Cascades" (ICLR 2024, arXiv
2404.10136); log-probabilities of the tokens that carry meaning in calls of functions (arXiv 2604.22985).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agent.appraisal import FieldConfidence
from agent.confidence import checks
from agent.confidence.fields import Leaf, call_leaves, leaves, overlapping
from agent.structure import CALL_ARGUMENTS, CALL_NAME, CALL_OPEN
from agent.tasks import TaskKind
from agent.types import Generation, Token

VERSION = 1
MOST_MARGIN = 12.0  # nats; a margin above it is as good as certain
_NAME = re.compile(
    re.escape((CALL_OPEN + CALL_NAME).encode()) + rb'([^"]*)' + re.escape(CALL_ARGUMENTS.encode()), re.DOTALL
)


class Shown(NamedTuple):
    """The demonstrations that a request was answered behind."""

    answers: tuple[str, ...] = ()
    closeness: float = 0.0  # of the nearest, cosine of the encoder's vectors


def features(kind: TaskKind, source: str, generation: Generation, shown: Shown | None = None) -> dict[str, float]:
    """Return the figures of an answer by name; empty where there is nothing to judge.

    ``source`` is what the answer is about: the user's text. Log-probabilities and entropies are in nats, shares are
    0..1, margins are differences of log-probabilities cut to 12 nats.
    """
    if generation.failure:
        return {}
    tokens = [token for token in generation.tokens if not token.forced]
    found = {"length": math.log1p(len(generation.text)), "input_length": math.log1p(len(source))}
    match kind:
        case TaskKind.TEXT:
            if generation.end is not None:
                tokens = [*tokens, generation.end]
            found |= _of_tokens(tokens, "")
            found |= _of_text(generation, source, shown)
            found["end_logprob"] = generation.end.logprob if generation.end else 0.0
        case TaskKind.EXTRACT:
            text = b"".join(token.text_bytes for token in generation.tokens)
            values = [token for leaf in leaves(text) for token in _deciding(generation.tokens, leaf)]
            found |= _of_tokens(values or tokens, "")
            found |= _of_fields(generation.fields)
            given = [value for value in checks.leaf_values(checks.json_of(generation.text)) if value is not None]
            found["traceable"] = checks.traceable_share(given, source)
            found["given"] = float(len(given))
            found |= _of_demonstrations(generation.text, source, shown)
        case TaskKind.TOOL:
            found |= _of_calls(generation, source)
        case TaskKind.LABELS:
            return {}
    found["incomplete"] = float(generation.incomplete or generation.finish_reason == "length")
    known = "tokens" in found and all(map(math.isfinite, found.values()))
    return found if known else {}


def _of_tokens(tokens: Sequence[Token], prefix: str) -> dict[str, float]:
    if not tokens:
        return {}
    rising = sorted(token.logprob for token in tokens)
    margins = [_margin(token) for token in tokens]
    entropies = [token.entropy for token in tokens]
    count = len(tokens)
    found = {
        "tokens": math.log1p(count),
        "sum_logprob": math.fsum(rising),
        "mean_logprob": math.fsum(rising) / count,
        "min_logprob": rising[0],
        "q10_logprob": _quantile(rising, 0.10),
        "q25_logprob": _quantile(rising, 0.25),
        "first_logprob": tokens[0].logprob,
        "first_entropy": entropies[0],
        "mean_entropy": math.fsum(entropies) / count,
        "max_entropy": max(entropies),
        "min_margin": min(margins),
        "first_margin": margins[0],
        "min_mass": math.log(max(1e-9, min(token.allowed_mass for token in tokens))),
    }
    return {f"{prefix}{name}": value for name, value in found.items()}


def _margin(token: Token) -> float:
    return max(-MOST_MARGIN, min(MOST_MARGIN, token.logprob - token.runner_up_logprob))


def _quantile(rising: Sequence[float], share: float) -> float:
    """Return a quantile with a line between neighbours."""
    at = share * (len(rising) - 1)
    low = math.floor(at)
    high = min(low + 1, len(rising) - 1)
    return rising[low] + (at - low) * (rising[high] - rising[low])


def _of_text(generation: Generation, source: str, shown: Shown | None) -> dict[str, float]:
    text = generation.text
    said = checks.numbers(text)
    return {
        "copied": float(checks.is_copied(text, source)),
        "copied_words": checks.copied_words(text, source),
        "traceable": checks.traceable_share(said, source),
        "has_number": float(bool(said)),
        "refusal": float(checks.is_refusal(text)),
        "repeated": checks.repeated_share(text),
        "wrong_sums": float(checks.wrong_sums(text)),
        "lines": math.log1p(text.strip().count("\n")),
        **_of_demonstrations(text, source, shown),
    }


def _of_demonstrations(text: str, source: str, shown: Shown | None) -> dict[str, float]:
    """Say whether an answer is like those shown, or is one of them though the input has nothing of it."""
    if shown is None:
        return {}
    told = [checks.normalised(one) for one in shown.answers]
    kinds = [checks.shape(one) for one in shown.answers]
    same = checks.normalised(text) in told
    alike = checks.shape(text)
    return {
        "closeness": shown.closeness,
        "parroted": float(same and not checks.is_copied(text, source)),
        "like_shown": kinds.count(alike) / len(kinds) if kinds else 0.0,
    }


def _of_fields(fields: Mapping[str, FieldConfidence]) -> dict[str, float]:
    scores = [one.score for one in fields.values() if one.score is not None]
    nulls = [one.null_probability for one in fields.values() if one.null_probability is not None]
    return {
        "least_field": _log(min(scores, default=1.0)),
        "doubt_of_null": max((min(one, 1 - one) for one in nulls), default=0.0),
    }


def _of_calls(generation: Generation, source: str) -> dict[str, float]:
    text = b"".join(token.text_bytes for token in generation.tokens)
    names = [
        token
        for found in _NAME.finditer(text)
        for token in _deciding(generation.tokens, Leaf("", found.start(1), found.end(1)))
    ]
    values = [token for leaf in call_leaves(text) for token in _deciding(generation.tokens, leaf)]
    trees = [checks.json_of(call.arguments) for call in generation.tool_calls]
    leaf_count = sum(1 for tree in trees for _ in checks.leaf_values(tree))
    found = _of_tokens([*names, *values] or [token for token in generation.tokens if not token.forced], "")
    found |= {
        "calls": float(len(trees)),
        "arguments": math.log1p(leaf_count),
        "name_logprob": math.fsum(token.logprob for token in names),
        "name_margin": min((_margin(token) for token in names), default=MOST_MARGIN),
        "value_logprob": math.fsum(token.logprob for token in values),
        "traceable": checks.traceable_share(trees, source),
        "least_field": _of_fields(generation.fields)["least_field"],
    }
    return found


def _deciding(tokens: Sequence[Token], leaf: Leaf) -> list[Token]:
    return [token for token in overlapping(tokens, leaf.begin, leaf.end) if not token.forced]


FIELD_FEATURES = (
    "sum_logprob", "min_logprob", "min_margin", "first_entropy", "tokens", "traceable", "null", "null_mass", "mass",
)  # fmt: skip


def field_features(source: str, generation: Generation) -> dict[str, tuple[float, ...]]:
    """Return the figures (FIELD_FEATURES) of each field of a JSON answer, by its pointer; only those that carried a choice."""
    tree = checks.json_of(generation.text)
    text = b"".join(token.text_bytes for token in generation.tokens)
    found = {}
    for leaf in leaves(text):
        tokens = _deciding(generation.tokens, leaf)
        if not tokens or leaf.pointer not in generation.fields:
            continue
        value = value_at(tree, leaf.pointer)
        told = _of_tokens(tokens, "")
        null_mass = generation.fields[leaf.pointer].null_probability
        found[leaf.pointer] = (
            *(told[name] for name in FIELD_FEATURES[:5]),
            float(checks.is_traceable(value, source)),
            float(value is None),
            _log(0.0 if null_mass is None else null_mass),
            told["min_mass"],
        )
    return {pointer: row for pointer, row in found.items() if all(map(math.isfinite, row))}


def value_at(tree: Any, pointer: str) -> Any:
    """Return the value that a JSON pointer names; None where there is none."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(tree, dict):
            tree = tree.get(name)
        elif isinstance(tree, list) and name.isdigit() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return None
    return tree


def _log(share: float) -> float:
    return math.log(max(1e-9, share))
