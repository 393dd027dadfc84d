"""The monitors of all calibrated tasks: what requests and feedback tell them, and the thresholds that they tighten."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from agent.confidence import monitor as watching
from agent.confidence.calibration import NO_GUARANTEE, Calibration, Judged
from agent.confidence.monitor import Monitor
from agent.records import Feedback
from agent.telemetry import LOG, METRICS


class TaskMonitors:
    """One monitor for each calibration that is in use. A new calibration begins a new one."""

    def __init__(self) -> None:
        self._monitors: dict[str, Monitor] = {}
        self._changed: set[str] = set()

    def put(self, monitors: Iterable[Monitor]) -> None:
        """Take what is stored."""
        self._monitors |= {one.task: one for one in monitors}

    def forget(self, task: str) -> None:
        """Drop the monitor of a task."""
        self._monitors.pop(task, None)
        self._changed.discard(task)

    def of(self, calibration: Calibration | None) -> Monitor | None:
        """Return the monitor of a calibration; a fresh one before its first request."""
        if calibration is None:
            return None
        found = self._monitors.get(calibration.task)
        if found is None or found.calibration != calibration.id:
            return Monitor(task=calibration.task, calibration=calibration.id)
        return found

    def applied(self, calibration: Calibration, judged: Judged) -> Judged:
        """Return what was judged under a threshold that was tightened since; its promise has ended."""
        found = self._monitors.get(calibration.task)
        if found is None or found.calibration != calibration.id or not found.tightened:
            return judged
        confidence = msgspec.structs.replace(
            judged.confidence, guarantee=f"{NO_GUARANTEE}: the monitor raised an alarm"
        )
        return Judged(confidence, math.inf if found.threshold is None else found.threshold)

    def seen(
        self, calibration: Calibration, *, score: float | None, length: int, label: str | None, at_ms: int
    ) -> None:
        """Count one more input of the task."""
        before = self.of(calibration)
        assert before is not None
        self._keep(before, watching.seen(before, calibration, score=score, length=length, label=label, at_ms=at_ms))

    def told(self, calibration: Calibration | None, feedback: Feedback) -> bool:
        """Count a served answer that was drawn at random and judged. Returns whether the threshold was tightened.

        Whatever was picked, complained about or escalated is left out: it is not like what is served.
        """
        probability, right = feedback.said.probability, feedback.right
        before = self.of(calibration)
        is_drawn = feedback.served and feedback.propensity is not None
        if calibration is None or before is None or not is_drawn or right is None or probability is None:
            return False
        in_use = before.threshold if before.tightened else calibration.threshold
        if feedback.said.calibration != calibration.id or in_use is None or probability < in_use:
            return False
        after = watching.checked(before, calibration, score=probability, right=right, at_ms=feedback.created_at_ms)
        METRICS.count("monitor_checked", task=calibration.task, right=str(right).lower())
        self._keep(before, after)
        return len(after.alarms) > len(before.alarms)

    def changed(self) -> list[Monitor]:
        """Return the monitors that were not stored yet."""
        return [self._monitors[task] for task in sorted(self._changed)]

    def stored(self, found: Iterable[Monitor]) -> None:
        """Take note that these are stored; what has changed meanwhile is not."""
        self._changed -= {one.task for one in found if self._monitors.get(one.task) is one}

    def _keep(self, before: Monitor, after: Monitor) -> None:
        self._monitors[after.task] = after
        self._changed.add(after.task)
        if after.alarms[-1:] != before.alarms[-1:]:
            alarm = after.alarms[-1]
            METRICS.count("monitor_alarms", task=after.task, kind=alarm.kind)
            LOG.warning("task %s: %s", after.task, alarm.why)
