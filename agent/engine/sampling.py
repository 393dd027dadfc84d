"""Drawing a token, and what the unconstrained distribution says of it. numpy, float32.

Log-probabilities, runner-up and entropy are those of the model's own distribution
(temperature 1, nothing cut off), so that they mean the same under every setting.

A draw changes a copy of it, in this order: logit_bias, repetition penalty (a factor on the
logits of all tokens seen), frequency and presence penalties (of the answer's tokens), the
mask of a constraint, temperature, min_p, top_k, top_p. Greedy takes the best after the mask.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.engine.runtime import Row
from agent.types import Sampling, Token, TopToken

# Sizes of the pools in which the nucleus is looked for before the whole vocabulary is sorted.
_NUCLEUS_POOLS = (64, 1024)
Mask = NDArray[np.bool_]  # one per token of the vocabulary
_RULED_OUT = np.float32(1e6)  # far below any logit, and exact beside a 0
_LOWEST = np.float32(-1e4)  # exp() of it is 0, and 0 times it is 0: a logit of -inf would give NaN


class NoDistribution(Exception):
    """The logits are not numbers."""


class Observer:
    """Softmax figures of one row at a time, in buffers that are used again."""

    def __init__(self, vocabulary: int) -> None:
        self._shifted: Row = np.empty(vocabulary, np.float32)
        self._weights: Row = np.empty(vocabulary, np.float32)
        self._log_total = 0.0
        self.best = 0.0  # highest logit of the row
        self.likeliest = 0  # the token that has it

    def read(self, row: Row) -> None:
        """Take a row. Raises NoDistribution when it holds NaN or no finite number."""
        self.likeliest = int(row.argmax())
        best = row[self.likeliest]
        if not math.isfinite(best):
            raise NoDistribution
        self.best = float(best)
        np.subtract(row, best, out=self._shifted)
        if self._shifted.min() < _LOWEST:
            np.maximum(self._shifted, _LOWEST, out=self._shifted)
        np.exp(self._shifted, out=self._weights)
        self._log_total = math.log(float(self._weights.sum()))

    @property
    def shifted(self) -> Row:
        """The logits of the row that was read, minus their highest. Not to be changed."""
        return self._shifted

    def mass(self, mask: Mask) -> float:
        """Return the probability of the masked tokens together, 0..1."""
        return min(1.0, float(self._weights @ mask) / math.exp(self._log_total))

    def mass_of(self, tokens: Sequence[int]) -> float:
        """Return the probability of some tokens together, 0..1."""
        return min(1.0, float(self._weights[tokens].sum()) / math.exp(self._log_total))

    def describe(self, token: int, text_bytes: bytes, top: int) -> tuple[Token, list[int]]:
        """Return the token with its figures, and the ids of the ``top`` best.

        The pieces of the alternatives are the caller's to fill in.
        """
        shifted, total = self._shifted, self._log_total
        entropy = total - float(shifted @ self._weights) / math.exp(total)
        best = self._best(top) if top else []
        logprob = min(0.0, float(shifted[token]) - total)
        alternatives = tuple(TopToken(other, b"", min(0.0, float(shifted[other]) - total)) for other in best)
        shifted[token] = -np.inf
        runner_up = float(shifted.max()) - total
        return Token(token, text_bytes, logprob, runner_up, max(0.0, entropy), alternatives), best

    def _best(self, top: int) -> list[int]:
        pool = np.argpartition(self._shifted, -top)[-top:]
        return [int(index) for index in pool[np.argsort(-self._shifted[pool], kind="stable")]]


class Sampler:
    """Draws the tokens of one answer: settings, random numbers, and what was said so far."""

    def __init__(self, sampling: Sampling, prompt: Collection[int] = ()) -> None:
        """``prompt`` is what the repetition penalty counts besides the answer."""
        self._sampling = sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed & (1 << 64) - 1
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._counts: dict[int, int] = {}
        self._seen: set[int] = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._bias = {token: bias for token, bias in sampling.logit_bias if bias}
        self._plain = not self._bias and (
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        ) == (1, 0, 0)
        self.takes_likeliest = self._plain and sampling.temperature <= 0  # where no constraint rules it out

    def draw(self, observer: Observer, allowed: Mask | None = None) -> int:
        """Draw a token from the row that the observer has read. ``allowed`` has at least one token."""
        sampling = self._sampling
        if self.takes_likeliest and allowed is None:
            return observer.likeliest
        logits = observer.shifted
        if not self._plain:
            logits = self._penalised(logits, observer.best)
        if allowed is not None:
            logits = (allowed.astype(np.float32) - 1) * _RULED_OUT + logits  # three times as fast as ``where``
        if sampling.temperature <= 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64)
        scaled -= scaled.max()
        weights = np.exp(scaled / sampling.temperature)
        if sampling.min_p > 0:
            weights[weights < sampling.min_p] = 0.0  # the best has weight 1
        if sampling.top_k or sampling.top_p < 1:
            kept = _best(weights, sampling.top_k, sampling.top_p)
            return int(kept[_pick(weights[kept], self._rng)])
        return _pick(weights, self._rng)

    def accept(self, token: int) -> None:
        """Count a token that was drawn."""
        if not self._plain:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._seen.add(token)

    def _penalised(self, shifted: Row, best: float) -> Row:
        sampling = self._sampling
        logits = shifted + np.float32(best)  # a factor acts on the logits as the model gave them
        for token, bias in self._bias.items():
            if token < len(logits):
                logits[token] += bias
        if self._seen and sampling.repetition_penalty != 1:
            seen = np.fromiter(self._seen, np.intp)
            found = logits[seen]
            factor = np.float32(sampling.repetition_penalty)
            logits[seen] = np.where(found > 0, found / factor, found * factor)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            said = np.fromiter(self._counts, np.intp)
            times = np.fromiter(self._counts.values(), np.float32)
            logits[said] -= np.float32(sampling.frequency_penalty) * times + np.float32(sampling.presence_penalty)
        return logits


def _pick(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(index, len(weights) - 1)


def _best(weights: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.intp]:
    """Return the best ``top_k`` tokens, and of those the smallest set that reaches ``top_p``."""
    pool: NDArray[np.intp]
    if 0 < top_k < len(weights):
        pool = np.argpartition(weights, -top_k)[-top_k:]
        pool = pool[np.argsort(-weights[pool], kind="stable")]
        return pool[_nucleus(weights[pool], top_p)] if top_p < 1 else pool
    return _nucleus(weights, top_p)


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Return the smallest set of best tokens whose probability reaches ``top_p``."""
    wanted = top_p * weights.sum()
    pool: NDArray[np.intp]
    for size in (*_NUCLEUS_POOLS, len(weights)):
        pool = np.argpartition(weights, -size)[-size:] if size < len(weights) else np.arange(len(weights))
        pool = pool[np.argsort(-weights[pool], kind="stable")]
        reached = np.cumsum(weights[pool])
        if reached[-1] >= wanted:
            break
    return pool[: int(np.searchsorted(reached, wanted)) + 1]
