"""Drawing a token, and what the unconstrained distribution says of it. numpy, float32.

Log-probabilities, runner-up and entropy are those of the model's own distribution
(temperature 1, nothing cut off), so that they mean the same under every setting.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
from numpy.typing import NDArray

from agent.engine.runtime import Row
from agent.types import Sampling, Token, TopToken

# Sizes of the pools in which the nucleus is looked for before the whole vocabulary is sorted.
_NUCLEUS_POOLS = (64, 1024)
_LOWEST = np.float32(-1e4)  # exp() of it is 0, and 0 times it is 0: a logit of -inf would give NaN


class NoDistribution(Exception):
    """The logits are not numbers."""


class Observer:
    """Softmax figures of one row at a time, in buffers that are used again."""

    def __init__(self, vocabulary: int) -> None:
        self._shifted: Row = np.empty(vocabulary, np.float32)
        self._weights: Row = np.empty(vocabulary, np.float32)
        self._log_total = 0.0

    def read(self, row: Row) -> None:
        """Take a row. Raises NoDistribution when it holds NaN or no finite number."""
        best = row.max()
        if not math.isfinite(best):
            raise NoDistribution
        np.subtract(row, best, out=self._shifted)
        np.maximum(self._shifted, _LOWEST, out=self._shifted)
        np.exp(self._shifted, out=self._weights)
        self._log_total = math.log(float(self._weights.sum()))

    def draw(self, sampling: Sampling, rng: np.random.Generator) -> int:
        """Draw a token from the row that was read."""
        if sampling.temperature <= 0:
            return int(self._shifted.argmax())
        weights = np.exp(self._shifted.astype(np.float64) / sampling.temperature)
        if sampling.top_p < 1:
            kept = _nucleus(weights, sampling.top_p)
            return int(kept[_pick(weights[kept], rng)])
        return _pick(weights, rng)

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


def generator(sampling: Sampling) -> np.random.Generator:
    """Return the random numbers of one request: the same ones for the same seed."""
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed & (1 << 64) - 1
    return np.random.Generator(np.random.PCG64(seed))


def _pick(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(index, len(weights) - 1)


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
