"""What the language model's own label scores are worth on sets of closed labels, before anything was taught."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.classification import Classifier, sorting
from agent.confidence import labels as label_confidence
from agent.likelihoods import LabelScores
from agent.types import InferenceRequest, RequestKind
from benchmarks import certificates
from benchmarks.certificates import Answers, Floats
from benchmarks.closed_sets import Part
from benchmarks.open_raw import MODEL, engine
from benchmarks.rows import Row

ASKED = 200  # test examples: each costs a pass of the language model

Way = tuple[str, list[int], Floats]  # what it is, the labels that it chooses, how sure it is


async def scores_of(texts: list[str], labels: tuple[str, ...]) -> list[LabelScores]:
    """Return what the language model gives to each label, for each text. Raises RuntimeError where it fails."""
    found = []
    async with engine() as pool:
        classifier = Classifier(pool)
        for text in texts:
            messages = sorting(text, labels)
            request = InferenceRequest(
                id="", kind=RequestKind.CLASSIFY, model=MODEL, messages=messages, labels=labels, received_at_ms=0
            )
            told = await classifier.run(request)
            if told.failure or told.label_scores is None:
                raise RuntimeError(told.failure.message if told.failure else "the engine told no label scores")
            found.append(told.label_scores)
    return found


def ways(scores: list[LabelScores]) -> Iterator[Way]:
    """Yield what other programs go by, and what inputs without content correct, of the same scores."""
    raw = np.array([one.logprobs for one in scores])
    means = raw / np.array([one.token_counts for one in scores])
    shares = np.exp(raw - raw.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    entropy = -np.sum(shares * np.log(shares + 1e-12), axis=1)
    corrected = np.array([label_confidence.distribution(one) for one in scores])
    sure = [label_confidence.raw_score(row, by_head=False) or 0.0 for row in corrected.tolist()]
    yield "raw log-probability", raw.argmax(axis=1).tolist(), raw.max(axis=1)
    yield "entropy alone (as Cactus)", raw.argmax(axis=1).tolist(), -entropy
    yield "mean log-probability, scaled", means.argmax(axis=1).tolist(), np.exp(means.max(axis=1))
    yield "corrected by inputs without content", corrected.argmax(axis=1).tolist(), np.array(sure)


def figures(part: Part, folder: Path) -> Iterator[Row]:
    """Yield accuracy and ranking of each way, on the same test examples. Raises OSError where the set is not there."""
    train, test = part.read(folder)
    test = [test[i] for i in certificates.shuffled(len(test))][:ASKED]
    names = sorted({label for _, label in train})
    readable = tuple(name.replace("_", " ") for name in names)
    right = [names.index(label) for _, label in test]
    scores = asyncio.run(scores_of([text for text, _ in test], readable))
    name = f"{part.name.partition(',')[0]}{' eight intents' if 'eight' in part.name else ''}, language model, untaught"
    for what, chosen, sure in ways(scores):
        answers = Answers(sure, np.array(chosen) == np.array(right))
        yield Row(name, f"accuracy, {what}, n={len(test)}", float(answers.right.mean()))
        interval = certificates.bootstrap(answers, certificates.auroc)
        yield Row(name, f"AUROC, {what}", certificates.auroc(answers), interval)
        area, excess = certificates.aurc(answers)
        yield Row(name, f"AURC, {what}", area)
        yield Row(name, f"E-AURC, {what}", excess)
