"""From the answers of models and targets to an evaluation: variants, gates, the picture, the verdict. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from agent.evaluation import gates as gating
from agent.evaluation import pareto
from agent.evaluation import readiness as verdicts
from agent.evaluation.cases import Cases
from agent.evaluation.gates import Gate, Passage
from agent.evaluation.marks import schema_validator
from agent.evaluation.pareto import Curve, Picture
from agent.evaluation.readiness import HARD, Readiness, Wanted
from agent.evaluation.variants import RouteName, Scores, Scoring, Variant, hybrid
from agent.report import intervals
from agent.report.intervals import Share
from agent.settings import TargetSettings
from agent.tasks import TaskSpec
from agent.types import OnLowConfidence

SWEEP = 20  # thresholds of a hybrid in the picture
ENOUGH = 200  # cases, below which a warning is due


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a local model answered."""

    variant: Variant
    joules: float | None  # a request
    energy: str  # why they are unknown
    longest_tokens: int


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be judged, and by what."""

    spec: TaskSpec
    cases: Cases
    gates: tuple[Gate, ...]
    proven: bool
    wanted: Wanted
    targets: tuple[TargetSettings, ...]
    on_low_confidence: OnLowConfidence
    context_tokens: int


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One variant with its scores, gates and verdict."""

    name: str
    model: str
    route: RouteName
    scores: Scores
    gates: tuple[Passage, ...]
    readiness: Readiness

    @property
    def passed(self) -> bool:
        """Whether it passes all gates."""
        return all(one.passed for one in self.gates)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole evaluation."""

    task: str
    cases: int
    labelled: bool
    variants: tuple[Judged, ...]
    chosen: str  # the variant that the verdict is about
    passed: bool  # it passes all gates
    go: bool
    picture: Picture | None
    notes: tuple[str, ...]


def judge(
    question: Question, asked: Sequence[Asked], cloud: Variant | None, *, notes: Sequence[str] = ()
) -> Evaluation:
    """Return the evaluation of at least one local model, beside a cloud if there is one."""
    spec, cases = question.spec, question.cases
    scoring = Scoring(
        spec, cases.found, labelled=cases.labelled, is_valid=schema_validator(spec.schema) if spec.schema else None
    )
    found: list[Judged] = []
    for one in asked:
        for variant in (one.variant, hybrid(one.variant, cloud)):
            joules = one.joules if variant is one.variant else None
            found.append(_judged(question, scoring, variant, cloud, joules, one.longest_tokens))
    if cloud is not None:
        found.append(_judged(question, scoring, cloud, cloud, None, 0))
    chosen = _chosen(found)
    return Evaluation(
        task=spec.name,
        cases=len(cases.found),
        labelled=cases.labelled,
        variants=tuple(found),
        chosen=chosen.name,
        passed=chosen.passed,
        go=chosen.readiness.go,
        picture=_picture(scoring, asked, cloud),
        notes=(*notes, *_notes(question, asked)),
    )


def _judged(
    question: Question,
    scoring: Scoring,
    variant: Variant,
    cloud: Variant | None,
    joules: float | None,
    longest_tokens: int,
) -> Judged:
    scores = scoring.scores(variant, cloud, joules)
    per_day = question.wanted.per_day
    return Judged(
        name=variant.name,
        model=variant.model,
        route=variant.route,
        scores=scores,
        gates=tuple(gating.passage(gate, scores, per_day=per_day, proven=question.proven) for gate in question.gates),
        readiness=verdicts.readiness(
            variant,
            scores,
            _frequent(question.cases, scoring, variant, scores),
            question.wanted,
            verdicts.fallbacks(
                variant.route,
                question.spec,
                question.targets,
                question.on_low_confidence,
                longest_tokens=longest_tokens,
                context_tokens=question.context_tokens,
            ),
        ),
    )


def _frequent(cases: Cases, scoring: Scoring, variant: Variant, scores: Scores) -> Share | None:
    """Return the accuracy on what is tagged frequent; without such a tag on all that is not tagged hard."""
    if scores.accuracy is None:
        return None
    if verdicts.FREQUENT in scores.by_tag:
        return scores.by_tag[verdicts.FREQUENT]
    marks = [one for case, one in zip(cases.found, scoring.marks(variant), strict=True) if HARD not in case.tags]
    return intervals.share(sum(one is not None and one.right for one in marks), len(marks))


def _chosen(found: Sequence[Judged]) -> Judged:
    """Return the variant that passes the gates, then the verdict, then is cheapest, then is best."""

    def rank(one: Judged) -> tuple[bool, bool, Decimal, float]:
        scores = one.scores
        quality = scores.accuracy_bounds[0] if scores.accuracy is None else scores.accuracy.value or 0.0
        is_bad = not one.passed or not one.readiness.go
        # Where nothing passes, the best one shows how far it is.
        cost = Decimal(0) if is_bad or scores.dollars is None else scores.dollars
        return (not one.passed, not one.readiness.go, cost, -quality)

    return min(found, key=rank)


def _picture(scoring: Scoring, asked: Sequence[Asked], cloud: Variant | None) -> Picture | None:
    """Return quality by dollars: each model, the cloud, each hybrid as it is and over its thresholds."""
    curves: list[Curve | None] = []
    for one in asked:
        curves += [_curve(scoring, one.variant), _curve(scoring, hybrid(one.variant, cloud))]
        if cloud is not None:
            curves += [_curve(scoring, hybrid(one.variant, cloud, at)) for at in _thresholds(one.variant)]
    if cloud is not None:
        curves.append(_curve(scoring, cloud))
    known = [one for one in curves if one is not None]
    return pareto.picture(known) if known else None


def _thresholds(variant: Variant) -> list[float]:
    """Return thresholds that serve about the same number of cases more at each step."""
    known = sorted({reply.probability for reply in variant.replies if reply.probability is not None})
    return sorted({known[len(known) * part // SWEEP] for part in range(1, SWEEP)}) if len(known) > 1 else []


def _curve(scoring: Scoring, variant: Variant) -> Curve | None:
    """Return a variant as the picture needs it; None where a cost, an answer or what is right is unknown."""
    marks = scoring.marks(variant)
    costs = [reply.dollars for reply in variant.replies]
    if any(one is None for one in marks) or any(one is None for one in costs):
        return None
    at = "" if variant.threshold is None else f" at {variant.threshold:.3f}"
    return Curve(
        name=f"{variant.name}{at}",
        costs=tuple(float(one) for one in costs if one is not None),
        rights=tuple(float(one.right) for one in marks if one is not None),
        is_sweep=variant.threshold is not None,
    )


def _notes(question: Question, asked: Sequence[Asked]) -> list[str]:
    found = []
    count = len(question.cases.found)
    if count < ENOUGH:
        low, high = intervals.wilson(0.9, count)
        found.append(
            f"{count} cases are few: 90 % right could be {low:.0%} to {high:.0%}; bring {ENOUGH} to 500, hard ones too"
        )
    reasons = dict.fromkeys(one.energy for one in asked if one.energy)
    found += [f"energy is unknown: {reason}" for reason in reasons]
    if not question.cases.labelled:
        found.append("nobody said what is right: agreement with the cloud is no accuracy")
    return found
