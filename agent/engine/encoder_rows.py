"""From the outputs of an encoder to one row of numbers for each input, or to its spans. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.encoder import Pooling
from agent.engine.encoder_tokens import Tokens
from agent.engine.frames import Span

Rows = NDArray[np.float32]
SHORTEST_LENGTH = 1e-12  # of a vector that is divided by its length


def pooled(output: Rows, lengths: Sequence[int], pooling: Pooling) -> Rows:
    """Return one vector an input from those of its tokens: (n, tokens, width) -> (n, width).

    The first ``lengths[i]`` tokens of input i are its own, the rest is padding.
    """
    found: Rows = output
    match pooling:
        case Pooling.CLS:
            found = output[:, 0]
        case Pooling.LAST:
            found = output[np.arange(len(lengths)), np.asarray(lengths) - 1]
        case Pooling.MEAN if min(lengths) == output.shape[1]:
            found = output.mean(axis=1)
        case Pooling.MEAN:
            own = (np.arange(output.shape[1]) < np.asarray(lengths)[:, None]).astype(np.float32)
            found = np.einsum("ntw,nt->nw", output, own) / own.sum(axis=1, keepdims=True)
    return found


def normalized(rows: Rows) -> Rows:
    """Return the rows with length 1; a row of zeros stays as it is."""
    lengths = np.sqrt(np.einsum("nw,nw->n", rows, rows))[:, None]
    found: Rows = rows / np.maximum(lengths, np.float32(SHORTEST_LENGTH))
    return found


def shortened(rows: Rows, dimensions: int) -> Rows:
    """Return the first numbers of each row, which then has length 1."""
    return normalized(np.ascontiguousarray(rows[:, :dimensions]))


def log_probabilities(logits: Rows, *, several: bool) -> Rows:
    """Return log-probabilities (nats) over the last axis: of one label, or of each by itself."""
    found: Rows
    if several:
        found = -np.logaddexp(np.float32(0), -logits)
        return found
    top = logits - logits.max(axis=-1, keepdims=True)
    found = top - np.log(np.exp(top).sum(axis=-1, keepdims=True))
    return found


def spans(logprobs: Rows, tokens: Tokens, labels: Sequence[str]) -> tuple[Span, ...]:
    """Return the pieces of a text whose words, one after the other, have the same label.

    A word has the label of its first token: that is the one that models are trained on. Marks
    and words labelled ``O`` belong to no piece. ``B-`` begins a piece, ``I-`` goes on with one of
    the same label; both are cut off the name. ``logprobs``: (tokens, labels).
    """
    found: list[Span] = []
    scores: list[float] = []  # of the words of the last piece; empty when it has ended
    best = logprobs.argmax(axis=-1)
    word: int | None = None
    for index, ((start, end), of) in enumerate(zip(tokens.offsets, tokens.words, strict=True)):
        if of is not None and of == word:
            if scores:
                found[-1] = msgspec.structs.replace(found[-1], end=end)
            continue
        word, name = of, labels[int(best[index])]
        if start == end or name == "O":
            scores = []
            continue
        label = name[2:] if name[:2] in {"B-", "I-"} else name
        goes_on = bool(scores) and not name.startswith("B-") and found[-1].label == label
        scores = [*(scores if goes_on else ()), float(np.exp(logprobs[index, best[index]]))]
        begin = found.pop().start if goes_on else start
        found.append(Span(begin, end, label, sum(scores) / len(scores)))
    return tuple(found)
