"""An evaluation in words and columns, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.cli.output import counted, printable
from agent.escalation.prices import written
from agent.evaluation import pareto_pictures

if TYPE_CHECKING:
    from agent.evaluation.gates import Passage
    from agent.evaluation.judging import Evaluation, Judged
    from agent.evaluation.readiness import Readiness
    from agent.evaluation.variants import Scores

WIDTH = 18


def lines(found: Evaluation) -> Iterator[str]:
    """Yield the lines of an evaluation."""
    what = "" if found.labelled else ", without labels"
    yield f"task {found.task}, {counted(found.cases, 'case')}{what}"
    for one in found.variants:
        yield ""
        yield printable(one.name)
        yield from _scores(one.scores)
        for gate in one.gates:
            yield _row("gate", _gate(gate))
    if found.picture is not None and len(found.picture.points) > 1:
        yield ""
        yield from pareto_pictures.in_terminal(found.picture)
    for note in found.notes:
        yield ""
        yield f"Note: {note}."
    yield ""
    yield from _verdict(found, next(one for one in found.variants if one.name == found.chosen))


def _scores(scores: Scores) -> Iterator[str]:
    if scores.accuracy is not None:
        yield _row("accuracy", str(scores.accuracy))
    else:
        low, high = scores.accuracy_bounds
        yield _row("accuracy", f"unknown, {low:.1%} to {high:.1%}: {scores.unanswered} cases have no answer")
    yield _row("served locally", f"{scores.served}; of those right {scores.served_accuracy}")
    for name in ("agreement", "exact", "numeric", "schema_valid"):
        if (share := getattr(scores, name)) is not None:
            yield _row(name.replace("_", "-"), str(share))
    if scores.f1 is not None:
        yield _row("F1", f"{scores.f1.value:.3f} ({scores.f1.low:.3f} to {scores.f1.high:.3f})")
    for tag, share in scores.by_tag.items():
        yield _row(f"  {printable(tag)}", str(share))
    if scores.p50_ms is not None and scores.p95_ms is not None:
        p95 = scores.p95_ms
        yield _row("latency", f"p50 {scores.p50_ms:.0f} ms, p95 {p95.value:.0f} ms ({p95.low:.0f} to {p95.high:.0f})")
    else:
        yield _row("latency", "unknown")
    money = written(scores.dollars)
    if scores.dollars is not None:
        money += f" a request ({written(scores.input_dollars)} in, {written(scores.output_dollars)} out)"
    yield _row("cost", money)
    if scores.joules is not None:
        yield _row("energy", f"{scores.joules:.2f} J a request, of the whole machine")


def _gate(gate: Passage) -> str:
    told = f"{gate.gate}: {'passed' if gate.passed else 'FAILED'}, {gate.told}"
    if gate.passed and gate.carried is False:
        more = f"; about {gate.needed} would" if gate.needed else ""
        return f"{told} - so few cases cannot carry it{more}"
    return told


def _verdict(found: Evaluation, chosen: Judged) -> Iterator[str]:
    readiness: Readiness = chosen.readiness
    yield f"{'GO' if found.go and found.passed else 'NO-GO'}: {printable(chosen.name)}"
    for check in readiness.checks:
        proven = "" if check.proven or not check.passed else "; not proven: the interval goes beyond it"
        yield f"  {'yes' if check.passed else 'NO ':<3} {check.name}: {check.told}{proven}"
    for gate in chosen.gates:
        if not gate.passed:
            yield f"  NO  gate {gate.gate}: {gate.told}"
    for one in readiness.fallbacks:
        yield f"      if {one.failure}: {one.to or 'NOTHING'}"


def _row(name: str, text: str) -> str:
    return f"  {name:<{WIDTH}} {text}"
