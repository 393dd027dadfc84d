"""``outrider evaluate``: models, quantizations and routes on a user's own set, with gates for CI and a go or no-go."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, counted, emit_json, notice
from agent.cli.planning import AMOUNT
from agent.errors import BadExamples, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.cli.client import DaemonClient
    from agent.cli.evaluate_asking import Cloud
    from agent.evaluation.cases import Cases
    from agent.evaluation.judging import Evaluation
    from agent.tasks import TaskSpec

GATE_FAILED = 1  # exit code
SLOWEST_MS = {"labels": 500.0, "extract": 5000.0, "tool": 5000.0, "text": 5000.0}


@click.command()
@click.argument("task")
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "models", multiple=True, metavar="NAME", help="Another one than the task's; again for more.")
@click.option("--cloud", is_flag=True, help="Ask the target too: every input is sent, as policy allows.")
@click.option("--gate", "gates", multiple=True, metavar="GATE", help="accuracy>=0.9, hard:accuracy>=80%, p95_ms<=500 …")
@click.option("--proven", is_flag=True, help="A gate needs the whole interval, not just the figure.")
@click.option("--per-hour", type=AMOUNT, help="What this machine costs an hour, dollars. Default: 0.")
@click.option("--volume", type=AMOUNT, help="Requests a day, for the monthly cost.")
@click.option("--monthly-budget", type=AMOUNT, help="Most that a month may cost, dollars.")
@click.option("--p95-ms", type=click.FloatRange(0, min_open=True), help="Slowest 95 %. Default: 500 labels, 5000 else.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture of quality per dollar.")
@click.option("--yes", is_flag=True, help="Send without asking.")
@json_option
@pass_invocation
def evaluate(
    invocation: Invocation,
    /,
    task: str,
    data: Path,
    models: tuple[str, ...],
    cloud: bool,
    gates: tuple[str, ...],
    proven: bool,
    per_hour: Decimal | None,
    volume: Decimal | None,
    monthly_budget: Decimal | None,
    p95_ms: float | None,
    svg: Path | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Measure how TASK is answered on DATA: local only, hybrid and cloud only, for one model or several.

    DATA has one JSON object a line: "input", and "label" or "answer"; "tag" (frequent, hard, …) and
    "cloud" (what a target answered before) may be there. Without any label the answers are compared
    with the cloud's. Cases that taught the task are left out. The exit code is 1 if no variant passes
    all gates. Needs the running daemon.

    Example:  outrider evaluate mail test.jsonl --gate "accuracy>=0.9"
    """
    from agent.cli.client import DaemonClient
    from agent.cli.evaluate_asking import ask_cloud, ask_local, check_cloud, recorded_cloud
    from agent.cli.evaluate_text import lines
    from agent.evaluation import pareto_pictures
    from agent.evaluation.cases import read_cases
    from agent.evaluation.gates import parse_gate
    from agent.evaluation.judging import Asked, Question, judge
    from agent.evaluation.readiness import Wanted
    from agent.task_folder import folder_beside
    from agent.types import EgressPolicy

    spec = folder_beside(invocation.loaded.path).get(task)
    cases = read_cases(data, spec)
    for text in cases.notices:
        notice(text)
    parsed = [parse_gate(text, cases.tags) for text in gates]
    target = check_cloud(invocation.settings, spec) if cloud else None
    with DaemonClient(invocation.settings) as client:
        cases = _without_taught(client, spec, cases)
        later: Cloud | None = None
        if target is not None:
            if not yes:
                confirm(f"Send {counted(len(cases.found), 'input')} to target {target.name} ({target.egress})?")
            later = ask_cloud(client, invocation.settings, spec, cases.found, target)
        elif all(case.cloud is not None for case in cases.found):
            later = recorded_cloud(invocation.settings, cases.found)
        if not cases.labelled and later is None:
            raise BadExamples(
                f'{data} has no label or answer, and nothing to compare with: bring labels, a "cloud" answer in each '
                "line, or ask the target (--cloud)"
            )
        asked: Sequence[Asked] = [
            ask_local(client, spec, cases.found, model, per_hour or Decimal(0)) for model in models or (None,)
        ]
    found = judge(
        Question(
            spec=spec,
            cases=cases,
            gates=tuple(parsed),
            proven=proven,
            wanted=Wanted(p95_ms=p95_ms or SLOWEST_MS[spec.kind], per_day=volume, monthly_budget=monthly_budget),
            targets=() if invocation.settings.egress.policy is EgressPolicy.NEVER else invocation.settings.targets,
            on_low_confidence=invocation.settings.routing.on_low_confidence,
            context_tokens=invocation.settings.engine.context_tokens,
        ),
        asked,
        later.variant if later else None,
        notes=later.notes if later else (),
    )
    if svg is not None:
        _write_svg(svg, found, pareto_pictures)
    if as_json:
        emit_json(found)
    else:
        for line in lines(found):
            click.echo(line)
    return 0 if found.passed else GATE_FAILED


def _write_svg(path: Path, found: Evaluation, pictures: Any) -> None:
    if found.picture is None:
        raise InvalidRequest("--svg: there is no picture, as no variant has a known cost and an answer to every case")
    path.write_text(pictures.svg(found.picture, f"{found.task}: quality by dollars, n={found.cases}"), encoding="utf-8")
    notice(f"written: {path}")


def _without_taught(client: DaemonClient, spec: TaskSpec, cases: Cases) -> Cases:
    """Leave out what taught the task: on that it does better than on anything else. Raises WrongState, BadExamples."""
    from agent.cli.evaluate_asking import taught_texts
    from agent.confidence.heads import text_digest
    from agent.evaluation.cases import Cases as Left

    taught = taught_texts(client, spec)
    left = tuple(case for case in cases.found if text_digest(case.input) not in taught)
    if len(left) < len(cases.found):
        notice(f"{len(cases.found) - len(left)} of {len(cases.found)} cases taught the task and are left out")
    if not left:
        raise BadExamples("every one of these cases taught the task: bring others")
    return Left(left, cases.labelled)
