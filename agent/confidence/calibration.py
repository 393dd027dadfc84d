"""A stored calibration: the map to a probability, the threshold, what is promised, and what voids it. Pure."""

from __future__ import annotations

import math

import msgspec

from agent.confidence.certify import Certificate
from agent.confidence.drift import Reference
from agent.confidence.maps import ProbabilityMap
from agent.types import Confidence, Generation

NO_GUARANTEE = "none"


class CalibrationKey(msgspec.Struct, frozen=True, kw_only=True):
    """All that an answer's confidence depends on. Another value anywhere: no guarantee."""

    task_digest: str  # kind, labels, schema, prompt
    model: str  # name, for people
    model_digest: str  # covers its quantization and its adapter
    runtime: str
    estimator: str  # name@version, and the id of the taught head where there is one


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the reliability diagram: answers whose probability was about the same."""

    answers: int
    probability: float  # mean of what was said
    accuracy: float  # share that was right
    low: float  # exact 95 % interval of that share
    high: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the risk-coverage curve: the most confident share, and the share of it that was wrong."""

    coverage: float
    risk: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration was made of, and what it looked like."""

    examples: int
    right: int
    no_signal: int  # examples whose answer had no score
    served: int
    errors: int  # among the served
    coverage_low: float  # exact 95 % interval of the share that is served
    coverage_high: float
    expected_error: float  # ECE of the map, cross-validated, ten bins of equal size
    expected_error_floor: float  # what a map that is right would show with so few examples
    reliability: tuple[Bin, ...] = ()
    curve: tuple[Point, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the examples that is served."""
        return self.served / self.examples if self.examples else 0.0


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was calibrated of a task."""

    id: str
    task: str
    key: CalibrationKey
    map: ProbabilityMap
    threshold: float | None  # on the map's scale; None: nothing is served under this promise
    target: str  # accuracy, escalate, budget, wrong_share
    value: float  # of the target: a share, 0..1
    certificate: Certificate
    delta: float | None = None  # pac: probability that the promise does not hold
    sentence: str
    report: Report
    earlier: tuple[float, ...] = ()  # mean log-probabilities that the labels' scores are corrected by
    reference: Reference | None = None  # what its inputs were like, for what watches it later
    created_at_ms: int = 0

    @property
    def short(self) -> str:
        """The promise in a few words."""
        held = f"{self.certificate.value} {1 - self.delta:g}" if self.delta else self.certificate.value
        return f"{self.target} {self.value:g} ({held})"


class Judged(msgspec.Struct, frozen=True):
    """A confidence, and the threshold on its scale; None: the configuration's."""

    confidence: Confidence
    threshold: float | None = None


def key_of(task_digest: str, generation: Generation, confidence: Confidence) -> CalibrationKey:
    """Return what the confidence of a local answer depends on."""
    head = generation.label_scores.head if generation.label_scores else ""
    return CalibrationKey(
        task_digest=task_digest,
        model=generation.model,
        model_digest=generation.model_digest,
        runtime=generation.runtime,
        estimator=f"{confidence.estimator}:{head}" if head else confidence.estimator,
    )


def differences(calibrated: CalibrationKey, found: CalibrationKey) -> list[str]:
    """Return the names of what is not as it was when the task was calibrated."""
    names = ("task_digest", "model_digest", "runtime", "estimator")
    told = {"task_digest": "labels, schema or prompt", "model_digest": "model", "estimator": "estimator or head"}
    return [told.get(name, name) for name in names if getattr(calibrated, name) != getattr(found, name)]


def judge(calibration: Calibration | None, found: CalibrationKey, confidence: Confidence) -> Judged:
    """Return the calibrated confidence and its threshold; without a calibration that fits, no guarantee."""
    if calibration is None or differences(calibration.key, found):
        return Judged(msgspec.structs.replace(confidence, guarantee=NO_GUARANTEE))
    threshold = math.inf if calibration.threshold is None else calibration.threshold
    certified = calibration.short if calibration.threshold is not None else f"{calibration.short}: nothing is served"
    if confidence.raw is None or not math.isfinite(confidence.raw):
        told = msgspec.structs.replace(
            confidence, score=None, calibrated=True, calibration_id=calibration.id, guarantee=certified
        )
        return Judged(told, threshold)
    # What was cut off scored 0 whatever its tokens said; a map must not lift it.
    raw = confidence.raw if confidence.score else 0.0
    score = calibration.map.probability(raw)
    told = msgspec.structs.replace(
        confidence, score=score, calibrated=True, calibration_id=calibration.id, guarantee=certified
    )
    return Judged(told, threshold)
