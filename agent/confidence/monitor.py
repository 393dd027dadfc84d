"""What watches a certified threshold while it is used: checked answers, and drift without labels. Pure.

Checked answers are served ones that were drawn at random: by the task's quality sample (a target
says what is right) or by a review of a random draw. Answers that were escalated, complained about or
picked say nothing here: they are not like those that are served.

When the bets on "more is wrong than promised" win, the threshold tightens by itself to the lowest
one that the checked answers themselves still carry, or to none (all is escalated), and the promise ends
(``guarantee: none``) until the task is calibrated anew.
"""

from __future__ import annotations

import math

import msgspec

from agent.confidence import drift
from agent.confidence.betting import Wealth
from agent.confidence.calibration import Calibration
from agent.confidence.certify import Ranked, Scored, accuracy_mean

MOST_CHECKED = 500  # the latest, kept to find a tighter threshold by
MOST_ALARMS = 20
DELTA = 0.1  # of calibrations that promise on average
DRIFT_DELTA = 0.01
FIGURES = 3  # score, length, label


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person should look at."""

    kind: str  # quality, drift
    at_ms: int
    why: str


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a calibration since it was made."""

    task: str
    calibration: str  # id
    wealth: Wealth = Wealth()
    recent: tuple[tuple[float, bool], ...] = ()  # probability and rightness of the latest checked answers
    tightened: bool = False
    threshold: float | None = None  # where tightened: the one in use; None: nothing is served
    alarms: tuple[Alarm, ...] = ()
    inputs: int = 0
    looks: int = 0
    scores: tuple[float, ...] = ()  # of the window that is being filled
    lengths: tuple[float, ...] = ()
    labels: dict[str, int] = {}
    shifts: tuple[drift.Shift, ...] = ()  # of the last window


def allowed_error(calibration: Calibration) -> float | None:
    """Return the most that may be wrong of what is served; None where the promise does not say."""
    if calibration.target == "accuracy":
        return 1.0 - calibration.value
    if calibration.target == "wrong_share":  # of all traffic; of the served share it is that much more
        coverage = calibration.report.coverage
        return min(0.99, calibration.value / coverage) if coverage > 0 else None
    return None


def checked(monitor: Monitor, calibration: Calibration, *, score: float, right: bool, at_ms: int) -> Monitor:
    """Return the monitor after a served answer of probability ``score``, drawn at random, was judged."""
    alpha = allowed_error(calibration)
    recent = (*monitor.recent[-(MOST_CHECKED - 1) :], (score, right))
    monitor = msgspec.structs.replace(monitor, recent=recent)
    if alpha is None:
        return monitor
    wealth = monitor.wealth.after(wrong=not right, alpha=alpha)
    delta = calibration.delta or DELTA
    if not wealth.alarms(delta):
        return msgspec.structs.replace(monitor, wealth=wealth)
    return _tightened(msgspec.structs.replace(monitor, wealth=wealth), calibration, alpha, at_ms)


def _tightened(monitor: Monitor, calibration: Calibration, alpha: float, at_ms: int) -> Monitor:
    """Return the monitor with the threshold that its checked answers carry, above the one in use."""
    before = monitor.threshold if monitor.tightened else calibration.threshold
    above = [Scored(score, right) for score, right in monitor.recent if before is None or score >= before]
    found = accuracy_mean(Ranked(above), alpha=alpha).score
    if found is not None and before is not None and found <= before:
        found = None  # they carry no more than what has just failed
    wealth = monitor.wealth
    why = (
        f"{wealth.wrong} of {wealth.checked} checked answers were wrong, at most {alpha:.1%} were promised; "
        + ("nothing is served any more" if found is None else f"the threshold is {found:.4f} now")
        + ": calibrate again"
    )
    return msgspec.structs.replace(
        monitor,
        wealth=Wealth(),  # the next bets are on the new threshold
        recent=(),
        tightened=True,
        threshold=found,
        alarms=(*monitor.alarms[-(MOST_ALARMS - 1) :], Alarm(kind="quality", at_ms=at_ms, why=why)),
    )


def seen(
    monitor: Monitor, calibration: Calibration, *, score: float | None, length: int, label: str | None, at_ms: int
) -> Monitor:
    """Return the monitor after one more input, of which nobody says what is right."""
    scores = monitor.scores if score is None or not math.isfinite(score) else (*monitor.scores, score)
    labels = monitor.labels if label is None else {**monitor.labels, label: monitor.labels.get(label, 0) + 1}
    monitor = msgspec.structs.replace(
        monitor, inputs=monitor.inputs + 1, scores=scores, lengths=(*monitor.lengths, float(length)), labels=labels
    )
    if len(monitor.lengths) < drift.WINDOW:
        return monitor
    found: list[drift.Shift] = []
    looks = monitor.looks + 1
    if calibration.reference is not None:
        level = drift.level_of_look(looks, FIGURES, DRIFT_DELTA)
        found = drift.shifts(calibration.reference, monitor.scores, monitor.lengths, monitor.labels, level=level)
    alarms = monitor.alarms
    if found:
        told = ", ".join(f"{one.figure} ({one.statistic:.2f}, p = {one.p_value:.1g})" for one in found)
        why = f"the last {drift.WINDOW} inputs are not like those of the calibration: {told}; look at them, and calibrate again"
        alarms = (*alarms[-(MOST_ALARMS - 1) :], Alarm(kind="drift", at_ms=at_ms, why=why))
    return msgspec.structs.replace(
        monitor, looks=looks, shifts=tuple(found), alarms=alarms, scores=(), lengths=(), labels={}
    )
