"""A second opinion on multiple choice: how like the question each option is to an encoder. The product does not read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks import certificates
from benchmarks.certificates import Floats
from benchmarks.open_answers import Told, appraise

Figure = tuple[str, float, tuple[float, float] | None, str, bool | None]
Embed = Callable[[Sequence[str]], Floats]


def with_likeness(told: Sequence[Told], embed: Embed) -> list[Told]:
    """Return the answers with figures of how like the question the chosen option is, and how much more than others."""
    found = []
    for one in told:
        question, *options = embed([one.item.input, *one.item.options])
        likeness = np.array(options) @ question
        chosen = one.item.options.index(one.generation.text)
        figures = {
            "likeness": float(likeness[chosen]),
            "likeness_above": float(likeness[chosen] - np.delete(likeness, chosen).max()),
            "likeness_agrees": float(likeness.argmax() == chosen),
        }
        found.append(one._replace(figures={**one.figures, **figures}))
    return found


def second_opinion(taught: Sequence[Told], asked: Sequence[Told], embed: Embed) -> Iterator[Figure]:
    """Yield what an appraiser tells with it."""
    ranked = appraise(with_likeness(taught, embed), with_likeness(asked, embed)).answers
    interval = certificates.bootstrap(ranked, certificates.auroc)
    what = (
        f"AUROC, with how like the question each option is to the encoder (not in the product), n={len(ranked.right)}"
    )
    yield what, certificates.auroc(ranked), interval, "", None
