"""Does a model still say what its source says, on this very processor? Seconds, where a measurement takes minutes.

A file whose every byte is right can be computed wrongly: 8-bit weights that saturate, a kernel
that is wrong for this processor. Nothing fails then; only the answers show it.
"""

from __future__ import annotations

import hashlib

import msgspec

from agent import device
from agent.evaluation.labelled import wilson
from agent.evaluation.measure_worker import Text
from agent.evaluation.quality import GOLDEN_WINDOWS, SHIPPED, Plan, read_texts, shipped_text, windows_of
from agent.evaluation.steps import Steps
from agent.evaluation.window import WINDOW_TOKENS
from agent.models.quality import LEAST_AGREEMENT, Golden, Quality
from agent.models.serving import measured
from agent.models.store import ModelStore
from agent.settings import EngineSettings

_CHARACTERS_A_TOKEN = 4  # of the shipped text; twice as many are taken, as the cut changes the last tokens


class Answers(msgspec.Struct, frozen=True):
    """What came of it."""

    reference: str
    share: float  # of the positions with the same likeliest token, 0..1
    positions: int

    @property
    def hold(self) -> bool:
        return self.share >= LEAST_AGREEMENT

    def __str__(self) -> str:
        return f"says what {self.reference} says at {self.share:.0%} of {self.positions} places"


def check_golden(store: ModelStore, name: str, engine: EngineSettings) -> Answers | None:
    """Compare a model with the kept answers of its source; None where none are kept.

    It is kept that it holds on this processor; one that does not is below the floor from then on. Raises EngineFailed when it cannot be read.
    """
    stored = store.get(name)
    quality = measured(stored) if stored else None
    golden = quality.golden if quality else None
    whole = shipped_text().text
    if quality is None or golden is None or golden.text_digest != hashlib.sha256(whole.encode()).hexdigest():
        return None
    said = _said(store, name, golden, whole, engine)
    same = sum(one == other for one, other in zip(said, golden.likeliest, strict=False))
    found = Answers(golden.reference, same / len(golden.likeliest), len(golden.likeliest))
    if found.hold:
        store.note(name, checked_on=device.profile().cpu_model)
    else:
        store.note(name, quality=_below_the_floor(quality, found, same))
    return found


def _said(store: ModelStore, name: str, golden: Golden, whole: str, engine: EngineSettings) -> list[int]:
    """Return the token that the model puts first at each place; none after one without a number."""
    text = Text(SHIPPED, whole[: 2 * WINDOW_TOKENS * GOLDEN_WINDOWS * _CHARACTERS_A_TOKEN])
    steps = Steps()
    file = store.resolve(name, below_floor=True)
    read_texts(Plan(model=file, reference=None, texts=(text,), engine=engine, longest_context=0), _quietly, steps)
    windows = windows_of(text, steps)[:GOLDEN_WINDOWS]
    return [token for window in windows for token in window.likeliest]


def _below_the_floor(quality: Quality, found: Answers, same: int) -> Quality:
    """Return the measurement with what was seen now."""
    first = msgspec.structs.replace(quality.texts[0], agreement=wilson(same, found.positions))
    return msgspec.structs.replace(
        quality,
        machine=device.profile().cpu_model,
        reference=f"{found.reference} (its kept answers)",
        texts=(first, *quality.texts[1:]),
    )


def _quietly(_: str) -> None:
    pass
