"""Teaching a task whose answers are written: which demonstrations help, and how right answers differ from wrong ones."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent.cli import task_signals
from agent.cli.output import notice
from agent.demonstrations import LONGEST, MOST, MOST_KEPT, nearest
from agent.errors import BadExamples, OutriderError
from agent.tasks import TaskKind, TaskSpec

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.confidence.appraisers import Appraiser, Demonstrations
    from agent.confidence.fit_order import AppraisalOrder, Appraised, Judged
    from agent.evaluation.examples import Example

FEWEST = 30  # examples to teach by
FEWEST_OF_EACH = 5  # right answers, and wrong ones
COMPARED = 60  # examples by which demonstrations are compared with none; the rest is answered the better way
FEWEST_FIELDS = 40  # fields of JSON with a known truth, to judge single fields by
EXPECTED_ACCURACY = 0.9  # of what is served, where the task says nothing: where the grey zone lies
_SAMPLES_GAIN = 0.01  # log loss, nats an answer


def taught(
    client: DaemonClient, spec: TaskSpec, chosen: Sequence[Example], fit: Any, *, keep: bool = True
) -> Appraiser:
    """Return an appraiser. ``fit`` has an AppraisalOrder fitted; ``keep``: whether examples may be kept, to be shown.

    Raises BadExamples where they cannot teach.
    """
    from agent.confidence.appraisers import Appraiser
    from agent.confidence.heads import text_digest
    from agent.evaluation import matching

    if len(chosen) < FEWEST:
        raise BadExamples(f"{len(chosen)} examples to teach by, at least {FEWEST} are needed; 100 to 200 are usual")
    shelf = _Shelf(client, spec, chosen if keep else ())
    rows, compared, shown = _answered(client, spec, chosen, shelf)
    verdicts = [matching.verdict(spec, one.answers, one.verdict, row) for one, row in zip(chosen, rows, strict=True)]
    known = [
        (one, row, right)
        for one, row, right in zip(chosen, rows, verdicts, strict=True)
        if right is not None and row["features"]
    ]
    if len(known) < len(chosen):
        notice(f"{len(chosen) - len(known)} examples say nothing: no figures, or nobody judged what the model answered")
    rights = sum(right for _, _, right in known)
    if min(rights, len(known) - rights) < FEWEST_OF_EACH:
        told = f"{rights} of {len(known)} answers of the local model are right"
        raise BadExamples(
            f"{told}: at least {FEWEST_OF_EACH} right and {FEWEST_OF_EACH} wrong ones are needed to tell them apart. "
            + ("It cannot do this task: leave it untaught, and calibrating escalates all of it" if rights < 5 else "")
        )
    order = _order(spec, known)
    fitted: Appraised = fit(order)
    answer, sampled = fitted.answer, fitted.sampled
    gains = sampled is not None and sampled.log_loss < answer.log_loss - _SAMPLES_GAIN
    if sampled is not None:
        notice(
            f"samples {'are kept' if gains else 'gain too little and are left out'}: log loss "
            f"{sampled.log_loss:.3f} with them, {answer.log_loss:.3f} without"
        )
    grey = _grey(spec, answer.probabilities, [right for _, _, right in known]) if gains else (1.0, 0.0)
    pilot = tuple(
        (sampled.probabilities[at] if gains and sampled and grey[0] <= p <= grey[1] else p, right)
        for at, (p, (_, _, right)) in enumerate(zip(answer.probabilities, known, strict=True))
    )
    return Appraiser(
        task=spec.name,
        task_digest=spec.digest,
        model=rows[0]["model"],
        model_digest=rows[0]["model_digest"],
        runtime=rows[0]["runtime"],
        version=_version(),
        answer=answer.weights,
        fields=fitted.fields.weights if fitted.fields else None,
        sampled=sampled.weights if gains and sampled else None,
        samples=spec.samples if gains else 0,
        grey=grey,
        demonstrations=shelf.kept() if shown else None,
        taught=len(known),
        right=rights,
        auroc=answer.auroc,
        log_loss=answer.log_loss,
        compared=compared,
        pilot=pilot,
        texts=tuple(text_digest(one.input) for one in chosen),
    )


class _Shelf:
    """The examples as demonstrations, with their vectors."""

    def __init__(self, client: DaemonClient, spec: TaskSpec, chosen: Sequence[Example]) -> None:
        fitting = [one.verdict is not False and len(one.input) + len(one.answers[0]) <= LONGEST for one in chosen]
        kept = [at for at, fits in enumerate(fitting) if fits][:MOST_KEPT]
        self._chosen = chosen
        self._kept: list[int] = []
        if spec.kind is TaskKind.TOOL or len(kept) <= MOST:
            return
        try:
            self._told = task_signals.vectors(client, spec.name, [one.input for one in chosen])
        except OutriderError as error:
            notice(f"no demonstrations: {error}")
            return
        figures = array("f", self._told.raw)
        width = len(figures) // len(chosen)
        self._rows = [tuple(figures[at : at + width]) for at in range(0, len(figures), width)]
        self._kept = kept
        self._at = {one.line: index for index, one in enumerate(chosen)}

    def __bool__(self) -> bool:
        return bool(self._kept)

    def asked(self, one: Example) -> dict[str, Any]:
        """Return an example as an input behind the nearest others."""
        own = self._at[one.line]
        others = [at for at in self._kept if at != own]
        near = [others[at] for at in nearest(self._rows[own], [self._rows[at] for at in others])]
        closeness = sum(a * b for a, b in zip(self._rows[own], self._rows[near[-1]], strict=True))
        shown = [[self._chosen[at].input, self._chosen[at].answers[0]] for at in near]
        return {**_plain(one), "shown": shown, "closeness": max(-1.0, min(1.0, closeness))}

    def kept(self) -> Demonstrations:
        """Return what is shown from now on."""
        from agent.confidence.appraisers import Demonstrations as Kept

        return Kept(
            inputs=tuple(self._chosen[at].input for at in self._kept),
            answers=tuple(self._chosen[at].answers[0] for at in self._kept),
            vectors=array("f", [figure for at in self._kept for figure in self._rows[at]]).tobytes(),
            encoder=self._told.model,
            encoder_digest=self._told.model_digest,
            count=MOST,
        )


def _plain(one: Example) -> dict[str, Any]:
    return {"input": one.input, **({"tools": list(one.tools)} if one.tools else {})}


def _answered(
    client: DaemonClient, spec: TaskSpec, chosen: Sequence[Example], shelf: _Shelf
) -> tuple[list[dict[str, Any]], tuple[tuple[str, int, int], ...], bool]:
    """Return the answers to all examples, what was compared, and whether they are behind demonstrations."""
    from agent.evaluation import matching

    def ask(examples: Sequence[Example], *, behind: bool) -> list[dict[str, Any]]:
        inputs = [shelf.asked(one) if behind else _plain(one) for one in examples]
        if spec.samples:
            inputs = [{**one, "samples": spec.samples} for one in inputs]
        return task_signals.rows(client, spec.name, "draft", inputs, spec.digest)

    def rights(examples: Sequence[Example], rows: Sequence[dict[str, Any]]) -> list[bool]:
        return [
            bool(matching.verdict(spec, one.answers, one.verdict, row)) for one, row in zip(examples, rows, strict=True)
        ]

    if not shelf:
        return ask(chosen, behind=False), (), False
    some, rest = chosen[:COMPARED], chosen[COMPARED:]
    plain, behind = ask(some, behind=False), ask(some, behind=True)
    without, with_them = rights(some, plain), rights(some, behind)
    shown = gains(without, with_them)
    compared = (("plain", sum(without), len(some)), (f"behind {MOST} demonstrations", sum(with_them), len(some)))
    return [*(behind if shown else plain), *(ask(rest, behind=shown) if rest else ())], compared, shown


def gains(without: Sequence[bool], with_them: Sequence[bool]) -> bool:
    """Whether demonstrations make more answers right, by more than one standard error of the paired difference."""
    differences = [float(b) - float(a) for a, b in zip(without, with_them, strict=True)]
    mean = math.fsum(differences) / len(differences)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in differences)) / len(differences)
    return mean > spread


def _order(spec: TaskSpec, known: Sequence[tuple[Example, dict[str, Any], bool]]) -> AppraisalOrder:
    from agent.confidence.fit_order import AppraisalOrder

    names = tuple(sorted(set.intersection(*(set(row["features"]) for _, row, _ in known))))
    rights = [right for _, _, right in known]
    sampled = None
    if spec.samples and all(row["agreement"] is not None for _, row, _ in known):
        sampled = judged(
            (*names, "agreement"),
            [{**row["features"], "agreement": row["agreement"]} for _, row, _ in known],
            rights,
        )
    return AppraisalOrder(
        answer=judged(names, [row["features"] for _, row, _ in known], rights),
        fields=_fields(known) if spec.kind is TaskKind.EXTRACT else None,
        sampled=sampled,
    )


def _fields(known: Sequence[tuple[Example, dict[str, Any], bool]]) -> Judged | None:
    from agent.confidence.answer_features import FIELD_FEATURES
    from agent.confidence.appraisers import field_figures
    from agent.evaluation import matching

    rows, rights = [], []
    for one, row, _ in known:
        if one.verdict is not None:
            continue  # of the whole answer, not of its fields
        truths = matching.fields_right(row["answer"], one.answers[0])
        for pointer, figures in row["fields"].items():
            if pointer in truths:
                rows.append(field_figures(figures, FIELD_FEATURES, pointer))
                rights.append(truths[pointer])
    if len(rows) < FEWEST_FIELDS or min(sum(rights), len(rights) - sum(rights)) < FEWEST_OF_EACH:
        notice(f"{len(rows)} fields with a known truth are too few, or too alike, to judge single fields by")
        return None
    return judged(tuple(sorted({name for row in rows for name in row})), rows, rights)


def judged(names: Sequence[str], rows: Sequence[dict[str, float]], right: Sequence[bool]) -> Judged:
    """Return figures as a fit takes them; a missing one is 0."""
    from agent.confidence.fit_order import Judged as Order

    figures = array("d", [row.get(name, 0.0) for row in rows for name in names])
    return Order(names=tuple(names), figures=figures.tobytes(), right=tuple(right))


def _grey(spec: TaskSpec, probabilities: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """Return where samples may change what is served: around the threshold that these examples make likely."""
    from agent.confidence.appraisers import GREY_ZONE

    wanted = spec.target.accuracy or EXPECTED_ACCURACY
    errors = 0
    threshold = 1.0
    for served, (probability, is_right) in enumerate(sorted(zip(probabilities, right, strict=True), reverse=True), 1):
        errors += not is_right
        if errors <= (1 - wanted) * served:
            threshold = probability
    return max(0.0, threshold - GREY_ZONE), min(1.0, threshold + GREY_ZONE)


def _version() -> int:
    from agent.confidence.answer_features import VERSION

    return VERSION
