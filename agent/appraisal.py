"""What was found out about a written answer. Values only."""

from __future__ import annotations

import msgspec


class FieldConfidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """How sure one value of a JSON answer is."""

    score: float | None  # 0..1; None: no choice carried it
    null_probability: float | None = None  # what null had in its place, unconstrained; None: the format forbids null


class Appraisal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures of an answer, and what the task's appraiser makes of them."""

    appraiser: str = ""  # its id; empty: nobody's
    probability: float | None = None  # 0..1, before any calibration; None: no signal
    features: dict[str, float] = {}
    agreement: float | None = None  # share of drawn answers that say the same; None: none were drawn
    fields: dict[str, tuple[float, ...]] = {}  # figures of each field, where they were asked for

    @property
    def estimator(self) -> str:
        """What a calibration is keyed by."""
        return f"taught_answer@1:{self.appraiser}"

    @property
    def signals(self) -> dict[str, float]:
        """All figures by name."""
        return self.features if self.agreement is None else {**self.features, "agreement": self.agreement}
