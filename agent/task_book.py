"""All that is known of the tasks while requests run: their files, heads, calibrations and mean label scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from agent.confidence import calibration as calibrating
from agent.confidence.calibration import Calibration, Judged
from agent.confidence.heads import AppliedHead, Feature, Head
from agent.errors import OutriderError
from agent.task_folder import TaskFolder
from agent.tasks import TaskSpec
from agent.telemetry import LOG
from agent.types import Confidence, Generation, InferenceRequest, RequestKind

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

    def __init__(self, folder: TaskFolder) -> None:
        self.folder = folder
        self._heads: dict[str, AppliedHead] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._means: dict[str, LabelMeans] = {}
        self._changed: set[str] = set()

    def spec(self, name: str) -> TaskSpec:
        """Return a task. Raises TaskNotFound, or ConfigError for a file that does not hold."""
        return self.folder.get(name)

    def put(
        self, *, heads: Iterable[Head] = (), calibrations: Iterable[Calibration] = (), means: Iterable[LabelMeans] = ()
    ) -> None:
        """Take what is stored. A head that cannot be applied is left out and named in the log."""
        for head in heads:
            try:
                self._heads[head.task] = AppliedHead(head)
            except ValueError as error:
                LOG.error("the head of task %s cannot be used: %s; teach it again", head.task, error)
        self._calibrations |= {one.task: one for one in calibrations}
        self._means |= {one.task: one for one in means}

    def forget(self, task: str, *, only_calibration: bool = False) -> None:
        """Drop what was learned of a task."""
        self._calibrations.pop(task, None)
        if not only_calibration:
            self._heads.pop(task, None)
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
        """Return the means that were not stored yet; they count as stored then."""
        found = [self._means[task] for task in sorted(self._changed)]
        self._changed.clear()
        return found

    def judge(self, request: InferenceRequest, generation: Generation, confidence: Confidence) -> Judged:
        """Return the confidence as the task's calibration says, and the threshold that decides."""
        digest = self._digest(request.task)
        if request.task is None or digest is None:
            return Judged(confidence)
        if request.kind is not RequestKind.CLASSIFY and (request.sampling.temperature or request.sampling.drawn > 1):
            # Calibrated are the likeliest answers; drawn ones are others.
            return calibrating.judge(None, calibrating.key_of(digest, generation, confidence), confidence)
        found = calibrating.key_of(digest, generation, confidence)
        return calibrating.judge(self._calibrations.get(request.task), found, confidence)

    def _digest(self, task: str | None) -> str | None:
        """Return what the task is now; None where its file is gone or does not hold any more."""
        if task is None:
            return None
        try:
            return self.folder.get(task).digest
        except OutriderError:
            return None
