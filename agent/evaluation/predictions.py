"""How one model predicts a text, beside another one: runs in a child, both models in it.

Both read the same windows of tokens in lockstep, so that whole distributions are compared
without being kept. The scoring context is the one that labels are scored in: a row depends on
the tokens before it and on nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.engine.runtime import Node, Row, Runtime
from agent.evaluation.window import WINDOW_TOKENS, Window
from agent.models.quality import Estimate, TextFigures

FIRST_COUNTED = 32  # of a window: before it there is too little to go on
BLOCK_TOKENS = 32  # neighbours depend on each other: they are drawn together
RESAMPLES = 1000
MOST_OF_ONE_TOKEN = 0.5  # share of positions; above it the model says the same whatever it reads
MOST_BITS_PER_BYTE = 4.0  # a uniform guess over 50,000 tokens has about 4.5

Figures = NDArray[np.float64]


class NoCommonVocabulary(Exception):
    """The two models cut text into different tokens: their distributions cannot be compared."""


def predict(
    name: str,
    text: str,
    model: Runtime,
    reference: Runtime | None,
    tell: Callable[[int, int], None],
    *,
    done: Sequence[Window] = (),
    keep: Callable[[Window], None] = lambda _: None,
) -> TextFigures:
    """Return the figures of ``model`` on ``text``.

    ``tell`` is given (positions done, all) after each window. Windows that are ``done`` are not
    read again; ``keep`` is given the others. Raises NoCommonVocabulary, and ValueError for a
    text that is too short.
    """
    tokens = model.label_tokens(text)
    if reference and (reference.vocabulary_size != model.vocabulary_size or reference.label_tokens(text) != tokens):
        raise NoCommonVocabulary
    if len(tokens) < FIRST_COUNTED + 2 * BLOCK_TOKENS:
        raise ValueError(f"{name} has {len(tokens)} tokens; at least {FIRST_COUNTED + 2 * BLOCK_TOKENS} are needed")
    opening = _opening(model)
    known = {window.begin: window for window in done}
    windows: list[Window] = []
    for begin in range(0, len(tokens), WINDOW_TOKENS):
        window = known.get(begin)
        if window is None:
            window = _read(begin, [*opening, *tokens[begin : begin + WINDOW_TOKENS]], model, reference)
            keep(window)
        windows.append(window)
        if window.damaged:
            return _damaged(name, sum(len(one.surprise) for one in windows), "the model computes no numbers (NaN)")
        tell(min(begin + WINDOW_TOKENS, len(tokens)), len(tokens))
    return _figures(name, windows)


def _read(begin: int, tokens: Sequence[int], model: Runtime, reference: Runtime | None) -> Window:
    surprise: list[float] = []
    reference_surprise: list[float] = []
    divergence: list[float] = []
    agreement: list[bool] = []
    likeliest: list[int] = []
    expected: list[int] = []
    text_bytes = 0
    damaged = False
    for at, row, other in _rows(tokens, model, reference):
        if at < FIRST_COUNTED:
            continue
        logprobs = _log_softmax(row)
        if damaged := logprobs is None:
            break
        following = tokens[at + 1]
        surprise.append(-float(logprobs[following]))
        text_bytes += len(model.piece(following))
        likeliest.append(best := int(logprobs.argmax()))
        if other is not None and (of_reference := _log_softmax(other)) is not None:
            reference_surprise.append(-float(of_reference[following]))
            divergence.append(max(0.0, float(np.exp(of_reference) @ (of_reference - logprobs))))
            expected.append(int(of_reference.argmax()))
            agreement.append(best == expected[-1])
    return Window(
        begin=begin,
        surprise=tuple(surprise),
        reference_surprise=tuple(reference_surprise),
        divergence=tuple(divergence),
        agreement=tuple(agreement),
        likeliest=tuple(likeliest),
        expected=tuple(expected),
        bytes=text_bytes,
        damaged=damaged,
    )


def _figures(name: str, windows: Sequence[Window]) -> TextFigures:
    surprise = [value for window in windows for value in window.surprise]
    reference_surprise = [value for window in windows for value in window.reference_surprise]
    divergence = [value for window in windows for value in window.divergence]
    agreement = [float(value) for window in windows for value in window.agreement]
    likeliest = Counter(token for window in windows for token in window.likeliest)
    bits_per_byte = sum(surprise) / math.log(2) / max(1, sum(window.bytes for window in windows))
    return TextFigures(
        name=name,
        tokens=len(surprise),
        perplexity=_perplexity(surprise),
        bits_per_byte=bits_per_byte,
        reference_perplexity=_perplexity(reference_surprise) if reference_surprise else None,
        divergence=_estimate(divergence) if divergence else None,
        agreement=_estimate(agreement) if agreement else None,
        fault=_fault(likeliest, bits_per_byte, agreement),
    )


def _rows(window: Sequence[int], model: Runtime, reference: Runtime | None) -> Iterator[tuple[int, Row, Row | None]]:
    """Yield (position, row, the reference's row) for every token that has a following one."""
    contexts = [runtime.scoring(len(window)) for runtime in (model, reference) if runtime]
    for context in contexts:
        context.keep(0)
    step = min(context.batch_tokens for context in contexts)
    for begin in range(0, len(window) - 1, step):
        nodes = [
            Node(token, begin + at, None, wants_row=True)
            for at, token in enumerate(window[begin : min(begin + step, len(window) - 1)])
        ]
        rows = [context.decode(nodes) for context in contexts]
        for at, row in enumerate(rows[0]):
            yield begin + at, row, rows[1][at] if reference else None


def _opening(model: Runtime) -> list[int]:
    """Return the token that the model wants before every text, if there is one."""
    return model.text_tokens("a")[: len(model.text_tokens("a")) - len(model.label_tokens("a"))]


def _log_softmax(row: Row) -> Figures | None:
    """Return log-probabilities in nats; None where the logits are not numbers."""
    best = float(row.max())
    if not math.isfinite(best):
        return None
    shifted: Figures = np.maximum(row.astype(np.float64) - best, -1e4)
    shifted -= math.log(float(np.exp(shifted).sum()))
    return shifted


def _fault(likeliest: Counter[int], bits_per_byte: float, agreement: Sequence[float]) -> str:
    share = likeliest.most_common(1)[0][1] / likeliest.total()
    if share > MOST_OF_ONE_TOKEN:
        return f"the same token is likeliest at {share:.0%} of the positions, whatever the text: the file is damaged"
    if bits_per_byte > MOST_BITS_PER_BYTE:
        return f"{bits_per_byte:.1f} bits per byte is no better than guessing: the file is damaged"
    if agreement and sum(agreement) == 0:
        return "it never agrees with the reference: the file is damaged"
    return ""


def _damaged(name: str, tokens: int, fault: str) -> TextFigures:
    nothing = Estimate(0.0, 0.0, 0.0)
    return TextFigures(name=name, tokens=tokens, perplexity=nothing, bits_per_byte=0.0, fault=fault)


def _perplexity(surprise: Sequence[float]) -> Estimate:
    mean = _estimate(surprise)
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))


def _estimate(values: Sequence[float]) -> Estimate:
    """Return mean and 95 % percentile interval of a block bootstrap (Kuensch 1989), always the same draw."""
    figures: Figures = np.asarray(values, np.float64)
    blocks = max(1, math.ceil(len(figures) / BLOCK_TOKENS))
    parts = np.array_split(figures, blocks)
    sums = np.array([part.sum() for part in parts])
    sizes = np.array([len(part) for part in parts])
    drawn = np.random.default_rng(0).integers(0, blocks, (RESAMPLES, blocks))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(figures.mean()), float(low), float(high))
