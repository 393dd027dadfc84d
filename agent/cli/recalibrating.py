"""Before an alias stands for another model: each task that promises something is calibrated with that one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agent.cli.output import notice, table
from agent.errors import BadExamples, InvalidRequest, NotCertified, WrongState

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.confidence.calibration import Calibration
    from agent.confidence.heads import Head
    from agent.evaluation.certifying import Wish
    from agent.evaluation.examples import Example
    from agent.task_folder import TaskFolder
    from agent.tasks import TaskSpec

NOTHING = "nothing"


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """A task with the candidate, beside what it is now."""

    task: str
    promise: str  # in a few words
    before: float  # share of its examples that is served, 0..1
    before_sentence: str
    after: float | None  # None: nothing is promised
    after_sentence: str  # or why there is none
    calibration: Calibration | None = None
    head: Head | None = None  # None: as it is

    @property
    def ends(self) -> bool:
        return self.after is None

    @property
    def renewal(self) -> dict[str, Any] | None:
        """What the daemon has to keep; None for nothing."""
        if self.calibration is None:
            return None
        found = {"calibration": msgspec.to_builtins(self.calibration)}
        return found | {"head": msgspec.to_builtins(self.head)} if self.head else found

    @property
    def told(self) -> dict[str, Any]:
        """What it shows, without the calibration itself."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name not in {"calibration", "head"}}


def renewed(client: DaemonClient, folder: TaskFolder, alias: str, candidate: str) -> list[Renewed]:
    """Calibrate every task that answers by an alias with a candidate. Nothing is stored; minutes."""
    from agent.models.aliases import DEFAULT

    aliases = {one["name"]: one["model"] for one in client.get("/v1/aliases")["data"]}
    if aliases.get(alias) == candidate:
        return []
    found = []
    for told in client.get("/v1/tasks")["data"]:
        calibration = told.get("calibration")
        uses = (told.get("model") or DEFAULT) == alias
        if not uses or not calibration or not calibration["current"] or calibration["threshold"] is None:
            continue
        if calibration["key"]["model"] != aliases.get(alias):  # a head that reads vectors only: another model answers
            continue
        notice(f"task {told['name']}: calibrating with {candidate} on its stored examples ...")
        found.append(_renewed(client, folder.get(told["name"]), calibration, candidate))
    return found


def _renewed(client: DaemonClient, spec: TaskSpec, calibration: dict[str, Any], candidate: str) -> Renewed:
    from agent.confidence.calibration import Calibration as Stored

    before = msgspec.convert({**calibration, "earlier": ()}, Stored, strict=False)
    head, after, why = None, None, ""
    try:
        head, after = _with(client, spec, before, candidate)
    except (NotCertified, BadExamples, InvalidRequest) as error:
        why = str(error)
    serves = after is not None and after.threshold is not None
    return Renewed(
        task=spec.name,
        promise=before.short,
        before=before.report.coverage,
        before_sentence=before.sentence,
        after=after.report.coverage if after and serves else None,
        after_sentence=after.sentence if after else why,
        calibration=after,
        head=head,
    )


def _with(client: DaemonClient, spec: TaskSpec, before: Calibration, candidate: str) -> tuple[Head | None, Calibration]:
    """Return the head, where it is a new one, and the calibration with the candidate."""
    from agent.cli.calibrate import calibrated
    from agent.cli.teach import taught
    from agent.confidence.heads import Head as Stored
    from agent.tasks import TaskKind

    kept = client.get_as_admin(f"/v1/tasks/{spec.name}/examples")
    examples = _examples(kept["calibrate"])
    if not examples:
        raise NotCertified("its examples are not kept here; calibrate it again after a forced promotion")
    wish = _wish(before)
    if not before.key.estimator.partition(":")[2]:
        return None, calibrated(client, spec, examples, wish, None, candidate)
    if spec.kind is not TaskKind.LABELS:
        raise NotCertified(
            "what tells its right answers from its wrong ones was taught of the model in place: "
            "teach and calibrate it again after a forced promotion"
        )
    now = msgspec.convert(client.get(f"/v1/tasks/{spec.name}/head"), Stored)
    lessons = _examples(kept["teach"])
    if not lessons:
        raise NotCertified("the examples that taught it are not kept here; teach and calibrate it again afterwards")
    head = taught(client, spec, lessons, now.feature.value, candidate)
    return head, _by_head(client, spec, examples, wish, head, candidate)


def _examples(rows: Sequence[dict[str, Any]]) -> list[Example]:
    from agent.evaluation.examples import Example as Row

    return [Row(number, row["input"], row["answer"]) for number, row in enumerate(rows, start=1)]


def _wish(before: Calibration) -> Wish:
    from agent.evaluation.certifying import Wish as Wanted

    confidence = {} if before.delta is None else {"confidence": 1 - before.delta}
    return Wanted(target=before.target, value=before.value, certificate=before.certificate, **confidence)


def _by_head(
    client: DaemonClient, spec: TaskSpec, examples: Sequence[Example], wish: Wish, head: Head, candidate: str
) -> Calibration:
    """Judge a head that the daemon does not use yet: it is applied here, as the daemon will."""
    import base64
    from array import array

    from agent.cli import task_signals
    from agent.confidence import labels
    from agent.confidence.calibration import CalibrationKey
    from agent.confidence.certify import Scored
    from agent.confidence.heads import AppliedHead
    from agent.evaluation.certifying import Judgement, calibrate

    applied = AppliedHead(head)
    inputs = [one.input for one in examples]
    rows = task_signals.rows(client, spec.name, "scores", inputs, spec.digest, candidate)
    vectors = array("f")
    if applied.dimensions:
        vectors.frombytes(task_signals.vectors(client, spec.name, inputs).raw)
    judged = []
    for number, (one, row) in enumerate(zip(examples, rows, strict=True)):
        figures = [float("nan") if figure is None else figure for figure in row["logprobs"]]
        vector = vectors[number * applied.dimensions : (number + 1) * applied.dimensions]
        state = array("f", base64.b64decode(row["hidden"] or ""))
        probabilities = applied.probabilities(one.input, vector, figures, state)
        score = labels.raw_score(probabilities, by_head=True)
        label = None if score is None else spec.names[labels.best(spec.names, probabilities)]
        right = None if one.answer is None else label == one.answer
        judged.append(Judgement(one.line, score, right, len(one.input), label))
    key = CalibrationKey(
        task_digest=spec.digest,
        model=rows[0]["model"],
        model_digest=rows[0]["model_digest"],
        runtime=rows[0]["runtime"],
        estimator=f"{labels.HEAD_ESTIMATOR}:{head.id}",
    )
    pilot = [Scored(score, right) for score, right in head.pilot]
    return calibrate(judged, wish, task=spec.name, key=key, pilot=pilot, by_head=True)


def require_promises(found: Sequence[Renewed], alias: str, candidate: str, *, force: bool) -> None:
    """Raise NotCertified when a promise would end, unless forced."""
    ended = [one for one in found if one.ends]
    if ended and not force:
        named = "; ".join(f"{one.task} ({one.promise}): {one.after_sentence}" for one in ended)
        raise NotCertified(
            f"nothing was changed: with {candidate} a promise would end. {named}. `outrider models promote {candidate} "
            f"--as {alias} --force` does it all the same; these tasks then promise nothing"
        )


def without_daemon(folder: TaskFolder, alias: str, candidate: str, *, force: bool) -> None:
    """Raise WrongState where tasks may promise something that only a running daemon can calibrate again."""
    from agent.models.aliases import DEFAULT

    named = [name for name in folder.names() if (folder.get(name).model or DEFAULT) == alias]
    if named and not force:
        raise WrongState(
            f"the tasks {', '.join(named[:10])} answer by {alias}, and what they promise can only be calibrated with "
            f"{candidate} while the daemon runs: start it, or use `outrider models promote {candidate} --as {alias} --force`, "
            "and they promise nothing until they are calibrated"
        )


def tell(found: Sequence[Renewed]) -> None:
    """Print what each task promises now and with the candidate."""
    if not found:
        return
    table(
        ["TASK", "PROMISE", "SERVED NOW", "SERVED WITH IT"],
        [
            (one.task, one.promise, f"{one.before:.1%}", NOTHING if one.after is None else f"{one.after:.1%}")
            for one in found
        ],
    )
    for one in found:
        notice(f"{one.task} now: {one.before_sentence}\n{one.task} with it: {one.after_sentence}")
