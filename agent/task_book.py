"""All that is known of the tasks while requests run: their files, heads, appraisers, calibrations, mean label scores."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from agent.confidence import appraisers as appraising
from agent.confidence import calibration as calibrating
from agent.confidence.appraisers import Appraiser
from agent.confidence.calibration import Calibration, Judged
from agent.confidence.heads import AppliedHead, Feature, Head
from agent.errors import OutriderError
from agent.experiments import EVALUATION
from agent.routing import Route, may_leave
from agent.structure import ToolChoice
from agent.task_folder import TaskFolder
from agent.task_monitors import TaskMonitors
from agent.tasks import TaskKind, TaskSpec
from agent.telemetry import LOG
from agent.types import (
    Action,
    Confidence,
    Decision,
    EgressPolicy,
    Generation,
    InferenceRequest,
    RequestKind,
    Sampling,
)

FEWEST_INPUTS = 30  # before the mean over them corrects label scores
LONGEST_MEMORY = 1000  # inputs that the mean follows


class LabelMeans(msgspec.Struct, frozen=True, kw_only=True):
    """The mean log-probabilities of a task's labels over its inputs so far, in the order of the sorted labels."""

    task: str
    task_digest: str
    model_digest: str
    inputs: int = 0
    means: tuple[float, ...] = ()


class TaskBook:
    """What requests ask of tasks. Everything but the files is put in by whoever owns the storage."""

    def __init__(self, folder: TaskFolder, draw: Callable[[], float] = random.random) -> None:
        """``draw`` gives numbers in [0, 1): whether a served answer is checked."""
        self.folder = folder
        self.monitors = TaskMonitors()
        self._draw = draw
        self._heads: dict[str, AppliedHead] = {}
        self._appraisers: dict[str, Appraiser] = {}
        self._vectors: dict[str, list[tuple[float, ...]]] = {}  # of the demonstrations, by appraiser
        self._calibrations: dict[str, Calibration] = {}
        self._means: dict[str, LabelMeans] = {}
        self._changed: set[str] = set()

    def spec(self, name: str) -> TaskSpec:
        """Return a task. Raises TaskNotFound, or ConfigError for a file that does not hold."""
        return self.folder.get(name)

    def put(
        self,
        *,
        heads: Iterable[Head] = (),
        appraisers: Iterable[Appraiser] = (),
        calibrations: Iterable[Calibration] = (),
        means: Iterable[LabelMeans] = (),
    ) -> None:
        """Take what is stored. A head or an appraiser that cannot be applied is left out and named in the log."""
        for head in heads:
            try:
                self._heads[head.task] = AppliedHead(head)
            except ValueError as error:
                LOG.error("the head of task %s cannot be used: %s; teach it again", head.task, error)
        for appraiser in appraisers:
            try:
                appraising.check(appraiser)
            except ValueError as error:
                LOG.error("the appraiser of task %s cannot be used: %s; teach it again", appraiser.task, error)
            else:
                self._vectors.clear()
                self._appraisers[appraiser.task] = appraiser
        self._calibrations |= {one.task: one for one in calibrations}
        self._means |= {one.task: one for one in means}

    def forget(self, task: str, *, only_calibration: bool = False) -> None:
        """Drop what was learned of a task."""
        self._calibrations.pop(task, None)
        self.monitors.forget(task)
        if not only_calibration:
            self._heads.pop(task, None)
            self._appraisers.pop(task, None)
            self._vectors.clear()
            self._means.pop(task, None)
            self._changed.discard(task)

    def head(self, task: str | None) -> AppliedHead | None:
        """Return the head of a task, None where there is none or the task has changed since it was taught."""
        found = self._heads.get(task) if task else None
        return found if found and found.head.task_digest == self._digest(task) else None

    def needs_no_model(self, request: InferenceRequest) -> bool:
        """Whether a request is answered by a head that reads vectors alone."""
        head = self.head(request.task) if request.kind is RequestKind.CLASSIFY else None
        return head is not None and head.head.feature is Feature.EMBEDDING

    def stored_head(self, task: str) -> Head | None:
        """Return the head of a task whether or not it still fits."""
        found = self._heads.get(task)
        return found.head if found else None

    def appraiser(self, task: str | None) -> Appraiser | None:
        """Return the appraiser of a task, None where there is none or the task has changed since it was taught."""
        found = self._appraisers.get(task) if task else None
        return found if found and found.task_digest == self._digest(task) else None

    def stored_appraiser(self, task: str) -> Appraiser | None:
        """Return the appraiser of a task whether or not it still fits."""
        return self._appraisers.get(task)

    def demonstration_vectors(self, appraiser: Appraiser) -> list[tuple[float, ...]]:
        """Return the vectors of an appraiser's demonstrations; they are unpacked once."""
        found = self._vectors.get(appraiser.id)
        if found is None:
            found = self._vectors[appraiser.id] = appraising.vectors_of(appraiser)
        return found

    def calibration(self, task: str) -> Calibration | None:
        """Return the calibration of a task whether or not it still fits."""
        return self._calibrations.get(task)

    def earlier(self, request: InferenceRequest, labels: Sequence[str], model_digest: str) -> tuple[float, ...]:
        """Return what the label scores of a task's request are corrected by; empty: by inputs without content.

        As calibrated, else the mean over earlier inputs. ``labels`` is the order of the result.
        """
        task = request.task
        if not task or sorted(labels) != sorted(request.labels):
            return ()
        digest, found = self._digest(task), self._calibrations.get(task)
        means: tuple[float, ...] = ()
        if found and (found.key.task_digest, found.key.model_digest) == (digest, model_digest):
            means = found.earlier  # empty: calibrated as corrected by inputs without content
        elif (known := self._means.get(task)) and (known.task_digest, known.model_digest) == (digest, model_digest):
            means = known.means if known.inputs >= FEWEST_INPUTS else ()
        if len(means) != len(labels):
            return ()
        by_label = dict(zip(sorted(labels), means, strict=True))
        return tuple(by_label[label] for label in labels)

    def observe(self, task: str, labels: Sequence[str], logprobs: Sequence[float], model_digest: str) -> None:
        """Count the label scores of one more input."""
        if not all(map(math.isfinite, logprobs)):
            return
        digest = self._digest(task)
        if digest is None:
            return
        by_label = dict(zip(labels, logprobs, strict=True))
        figures = tuple(by_label[label] for label in sorted(labels))
        known = self._means.get(task)
        if known is None or (known.task_digest, known.model_digest, len(known.means)) != (
            digest,
            model_digest,
            len(figures),
        ):
            known = LabelMeans(task=task, task_digest=digest, model_digest=model_digest, means=(0.0,) * len(figures))
        weight = 1.0 / min(known.inputs + 1, LONGEST_MEMORY)
        means = tuple(mean + weight * (one - mean) for mean, one in zip(known.means, figures, strict=True))
        self._means[task] = msgspec.structs.replace(known, inputs=known.inputs + 1, means=means)
        self._changed.add(task)

    def means(self, task: str) -> LabelMeans | None:
        """Return the mean label scores of a task."""
        return self._means.get(task)

    def changed_means(self) -> list[LabelMeans]:
        """Return the means that were not stored yet."""
        return [self._means[task] for task in sorted(self._changed)]

    def stored_means(self, found: Iterable[LabelMeans]) -> None:
        """Take note that these are stored; what has changed meanwhile is not."""
        self._changed -= {one.task for one in found if self._means.get(one.task) is one}

    def judge(self, request: InferenceRequest, generation: Generation, confidence: Confidence) -> Judged:
        """Return the confidence as the task's calibration says, and the threshold that decides."""
        digest = self._digest(request.task)
        if request.task is None or digest is None:
            return Judged(confidence)
        found = calibrating.key_of(digest, generation, confidence)
        as_calibrated = request.kind is RequestKind.CLASSIFY or is_usual(request, generation, self.spec(request.task))
        calibration = self._calibrations.get(request.task) if as_calibrated else None
        judged = calibrating.judge(calibration, found, confidence)
        if calibration is None or not judged.confidence.calibrated:
            return judged
        return self.monitors.applied(calibration, judged)

    def seen(self, request: InferenceRequest, generation: Generation, judged: Confidence) -> None:
        """Let the monitor of a task know of one more input of its traffic; what only measures is none."""
        calibration = self._calibrations.get(request.task) if request.task else None
        if calibration is None or not judged.calibrated or request.arm == EVALUATION:
            return
        self.monitors.seen(
            calibration,
            score=judged.raw,
            length=len(request.messages[-1].content),
            label=generation.text if request.kind is RequestKind.CLASSIFY else None,
            at_ms=request.received_at_ms,
        )

    def sampled(self, request: InferenceRequest, route: Route, decision: Decision) -> Decision:
        """Return the decision; where a served answer is drawn to be checked by a target, with the chance of that.

        Only what may leave without a person is drawn, and only with the share that the task names.
        """
        if decision.action is not Action.ANSWERED or request.task is None:
            return decision
        try:
            share = self.folder.get(request.task).quality_sample
        except OutriderError:
            return decision
        egress = decision.egress or EgressPolicy.APPROVE
        at_once = egress in {EgressPolicy.ALLOW, EgressPolicy.REDACT} and decision.target is not None
        if not at_once or not may_leave(request, route.mode, egress) or self._draw() >= share:
            return decision
        return msgspec.structs.replace(decision, propensity=share)

    def _digest(self, task: str | None) -> str | None:
        """Return what the task is now; None where its file is gone or does not hold any more."""
        if task is None:
            return None
        try:
            return self.folder.get(task).digest
        except OutriderError:
            return None


def is_usual(request: InferenceRequest, generation: Generation, spec: TaskSpec) -> bool:
    """Whether a written answer was asked for as those that calibrate are: the likeliest one, and nothing else about it.

    Another limit of its length changes nothing of an answer that ended by itself.
    """
    asked = request.sampling
    usual = Sampling(
        max_tokens=asked.max_tokens,
        seed=asked.seed,
        logprobs=asked.logprobs,
        top_logprobs=asked.top_logprobs,
        top_p=asked.top_p,  # of the likeliest token all three are nothing
        top_k=asked.top_k,
        min_p=asked.min_p,
    )
    whole = asked.max_tokens == spec.max_tokens or generation.finish_reason != "length"
    free = request.tools is None or request.tools.choice is ToolChoice.AUTO
    formed = request.response_format is None or spec.kind is TaskKind.EXTRACT
    return asked == usual and whole and free and formed and request.thinking is None
