"""``outrider calibrate``: a threshold with a promise, from examples that did not teach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice
from agent.cli.teach import keep_examples_option
from agent.errors import BadExamples, InvalidRequest, NotCertified, OutriderError, WrongState

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.confidence.appraisers import Appraiser
    from agent.confidence.calibration import Calibration
    from agent.confidence.heads import Head
    from agent.evaluation.certifying import Wish
    from agent.evaluation.examples import Example
    from agent.likelihoods import LabelScores
    from agent.settings import Settings
    from agent.tasks import TaskSpec


@click.command()
@click.argument("task")
@click.argument("examples", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--accuracy", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Of what is served.")
@click.option(
    "--escalate", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Most that is escalated, a share."
)
@click.option("--budget", metavar="AMOUNT/day", help="Most that escalations cost: 1.0/day. With --requests.")
@click.option(
    "--wrong-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Most of all traffic that gets a wrong local answer, a share.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    help="How sure the promise is to be. Default: the task's, 0.9.",
)
@click.option("--on-average", is_flag=True, help="Promise it on average over calibrations only: weaker, serves more.")
@click.option(
    "--price",
    type=click.FloatRange(0, min_open=True),
    help="Of one escalation, for --budget. Default: by the prices of the configuration and the examples' length.",
)
@click.option("--requests", "requests_per_day", type=click.FloatRange(0, min_open=True), help="A day, for --budget.")
@click.option("--dry-run", is_flag=True, help="Print it, and store nothing.")
@keep_examples_option
@click.option("--svg", type=click.Path(file_okay=False, path_type=Path), help="Write both pictures into this folder.")
@json_option
@pass_invocation
def calibrate(
    invocation: Invocation,
    task: str,
    examples: Path,
    accuracy: float | None,
    escalate: float | None,
    budget: str | None,
    wrong_share: float | None,
    confidence: float | None,
    on_average: bool,
    price: float | None,
    requests_per_day: float | None,
    dry_run: bool,
    keep_examples: bool,
    svg: Path | None,
    as_json: bool,
) -> int:
    """Find the threshold of TASK that keeps a promise, from EXAMPLES of its traffic, and use it from now on.

    The examples (one JSON object a line, as for `tasks teach`; "answer" instead of "label" for
    other kinds) must be drawn from the traffic as it comes, and must not have taught the task:
    those that did are left out. 200 to 500 are usual. Too few: it says how many more, and
    nothing is stored; the exit code is then 65. Needs the running daemon.

    Example:  outrider calibrate mail examples.jsonl --accuracy 0.95
    """
    from agent.cli import task_signals
    from agent.cli.client import DaemonClient
    from agent.confidence.certify import Certificate
    from agent.evaluation import certifying, pictures
    from agent.evaluation.drawn import fair_sample
    from agent.evaluation.examples import check_several_labels, read_examples
    from agent.task_folder import folder_beside
    from agent.tasks import TaskKind

    spec = folder_beside(invocation.loaded.path).get(task)
    target, value = _promised(spec, accuracy, escalate, budget, wrong_share)
    answered = target in certifying.NEED_ANSWERS
    read = read_examples(examples, spec, answered=answered)
    for text in read.notices:
        notice(text)
    if target == "budget":
        value = _paid_for(invocation.settings, spec, read.found, str(value), price, requests_per_day)
    wish = certifying.Wish(
        target=target,
        value=float(value),
        certificate=Certificate.MEAN if on_average else Certificate.PAC,
        confidence=confidence or spec.target.confidence,
    )
    with DaemonClient(invocation.settings) as client:
        usable, notices = fair_sample(read.found)
        for text in notices:
            notice(text)
        if not usable:
            raise BadExamples(f"{examples}: none of these examples is a fair sample of the traffic, see above")
        head, appraiser = _taught(client, spec)
        left = _without_taught(usable, head.texts if head else appraiser.texts if appraiser else (), task)
        if answered and spec.kind is TaskKind.LABELS:
            check_several_labels(left, str(examples))
        found = calibrated(client, spec, left, wish, head, appraiser=appraiser)
        if not dry_run:
            import msgspec

            client.put(f"/v1/tasks/{task}/calibration", msgspec.to_builtins(found))
            # A head that reads vectors only is the encoder's, whatever model comes next.
            of_model = head is None or bool(head.model)
            task_signals.keep_examples(client, task, "calibrate", left if keep_examples and of_model else ())
    written = []
    if svg is not None and found.report.curve:
        svg.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("reliability", pictures.reliability_svg(found)),
            ("risk-coverage", pictures.risk_coverage_svg(found)),
        ):
            path = svg / f"{task}-{name}.svg"
            path.write_text(text, encoding="utf-8")
            written.append(str(path))
    if as_json:
        emit_json({"stored": not dry_run, "pictures": written, "void": certifying.VOID, "calibration": found})
    else:
        _tell(found, written, stored=not dry_run)
    return 0 if found.threshold is not None else NotCertified.exit_code


def _promised(
    spec: TaskSpec, accuracy: float | None, escalate: float | None, budget: str | None, wrong_share: float | None
) -> tuple[str, float | str]:
    """Return what is to be promised, and how much of it; of a budget as it was written."""
    options = {"accuracy": accuracy, "escalate": escalate, "budget": budget, "wrong_share": wrong_share}
    given = [(name, value) for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InvalidRequest("say one of --accuracy, --escalate, --budget and --wrong-share")
    chosen = given[0] if given else spec.target.named
    if chosen is None:
        raise InvalidRequest(
            "say what is to be promised: --accuracy 0.95, --escalate 0.2, --budget 1.0/day or --wrong-share 0.02 "
            "(or [target] in the task's file)"
        )
    return chosen


def _paid_for(
    settings: Settings,
    spec: TaskSpec,
    examples: Sequence[Example],
    amount: str,
    price: float | None,
    requests_per_day: float | None,
) -> float:
    """Return the share of the requests that a budget pays to escalate."""
    from agent.cli.escalation_price import by_the_book
    from agent.evaluation.certifying import budget_share
    from agent.tasks import budget_per_day

    per_day = budget_per_day(amount, "--budget")
    if requests_per_day is None:
        raise InvalidRequest("--budget needs --requests (of this task, a day)")
    if price is None:
        price, how = by_the_book(settings, spec, examples)
        notice(how)
    return budget_share(per_day, price, requests_per_day)


def _taught(client: DaemonClient, spec: TaskSpec) -> tuple[Head | None, Appraiser | None]:
    """Return what judges answers now. Raises WrongState for what was taught of the task as it was."""
    import msgspec

    from agent.confidence.appraisers import Appraiser as StoredAppraiser
    from agent.confidence.heads import Head as StoredHead

    told = client.get(f"/v1/tasks/{spec.name}")
    if told["digest"] != spec.digest:
        raise WrongState(f"the daemon knows another task {spec.name}: does it run with the same --config?")
    stored: dict[str, Any] = {}
    for what in ("head", "appraiser"):
        if told[what] is not None:
            if not told[what]["current"]:
                raise WrongState(
                    f"task {spec.name} has changed since it was taught: outrider tasks teach {spec.name} EXAMPLES"
                )
            stored[what] = client.get(f"/v1/tasks/{spec.name}/{what}")
    head, appraiser = stored.get("head"), stored.get("appraiser")
    return (
        msgspec.convert(head, StoredHead) if head else None,
        msgspec.convert(appraiser, StoredAppraiser) if appraiser else None,
    )


def _without_taught(found: Sequence[Example], texts: Sequence[bytes], task: str) -> list[Example]:
    from agent.confidence.heads import text_digest

    taught = set(texts)
    left = [one for one in found if text_digest(one.input) not in taught]
    if len(left) < len(found):
        notice(f"{len(found) - len(left)} of {len(found)} examples taught the task and are left out")
    if not left:
        raise BadExamples(
            "every one of these examples taught the task, so they say nothing of how it does on others: bring others, "
            f"or teach with a part (outrider tasks teach {task} EXAMPLES --hold-back 0.5)"
        )
    return left


def calibrated(
    client: DaemonClient,
    spec: TaskSpec,
    left: Sequence[Example],
    wish: Wish,
    head: Head | None,
    model: str | None = None,
    *,
    appraiser: Appraiser | None = None,
) -> Calibration:
    """Return the calibration by examples, of the task's model or another one; a head is asked as it is."""
    import msgspec

    from agent.cli import task_signals
    from agent.confidence.calibration import CalibrationKey
    from agent.confidence.certify import Scored
    from agent.evaluation.certifying import Judgement
    from agent.evaluation.certifying import calibrate as certify
    from agent.tasks import TaskKind

    earlier: tuple[float, ...] = ()
    if spec.kind is TaskKind.LABELS and head is None and not _is_trained(client, spec, left, model):
        judged, key, earlier = _by_label_scores(client, spec, left, model)
    else:
        asked = [{"input": one.input, **({"tools": list(one.tools)} if one.tools else {})} for one in left]
        rows = task_signals.rows(client, spec.name, "answer", asked, spec.digest, model)
        keys = {msgspec.json.encode(row["key"]) for row in rows}
        if len(keys) > 1:
            raise WrongState("the model or the task was replaced meanwhile: begin again")
        key = msgspec.convert(rows[0]["key"], CalibrationKey)
        judged = [
            Judgement(one.line, row["score"], _is_right(spec, one, row), len(one.input), _label(spec, row))
            for one, row in zip(left, rows, strict=True)
            if one.answer is None or _is_right(spec, one, row) is not None
        ]
        if len(judged) < len(left):
            notice(f"{len(left) - len(judged)} examples are left out: nobody judged what the model answers to them now")
    silent = [one.line for one in judged if one.score is None]
    if silent:
        from agent.evaluation.examples import listed

        notice(f"no score (never served): {listed(silent)}")
    by = head or appraiser
    pilot = [Scored(score, right) for score, right in by.pilot] if by else []
    return certify(judged, wish, task=spec.name, key=key, pilot=pilot, earlier=earlier, by_head=head is not None)


def _is_trained(client: DaemonClient, spec: TaskSpec, left: Sequence[Example], model: str | None) -> bool:
    """Whether the task's model was made for its labels: then there is nothing to correct."""
    from agent.cli import task_signals

    rows = task_signals.rows(client, spec.name, "scores", [left[0].input], spec.digest, model)
    return bool(rows[0]["trained"])


def _by_label_scores(
    client: DaemonClient, spec: TaskSpec, left: Sequence[Example], model: str | None
) -> tuple[list[Any], Any, tuple[float, ...]]:
    """Judge a task without a head: a part of the inputs says what the labels' scores are on average, the rest counts."""
    import msgspec

    from agent.cli import task_signals
    from agent.confidence import labels
    from agent.confidence.calibration import CalibrationKey
    from agent.confidence.heads import text_digest
    from agent.evaluation.certifying import Judgement
    from agent.task_book import FEWEST_INPUTS

    ordered = sorted(left, key=lambda one: text_digest(one.input))  # whatever the file's order: not by label
    aside = max(FEWEST_INPUTS, len(ordered) // 5)
    if len(ordered) <= 2 * aside:
        raise NotCertified(
            f"{len(ordered)} examples cannot carry a promise: {aside} of them are needed to correct the labels' scores "
            "(a taught task needs none of that: outrider tasks teach)"
        )
    rows = task_signals.rows(client, spec.name, "scores", [one.input for one in ordered], spec.digest, model)
    known = [row["logprobs"] for row in rows[:aside] if None not in row["logprobs"]]
    if not known:
        raise NotCertified(f"the model scores no label of task {spec.name}: nothing can be promised of its answers")
    earlier = tuple(sum(column) / len(column) for column in zip(*known, strict=True))
    likeness = _likeness(client, spec, [one.input for one in ordered[aside:]])
    judged = []
    for one, row, like in zip(ordered[aside:], rows[aside:], likeness, strict=True):
        told = tuple(float("nan") if figure is None else figure for figure in row["logprobs"])
        scores = msgspec.structs.replace(like, logprobs=told, earlier=earlier)
        probabilities = labels.distribution(scores)
        score = labels.score_of(scores)
        label = None if score is None else spec.names[labels.best(spec.names, probabilities)]
        right = None if one.answer is None else label == one.answer
        judged.append(Judgement(one.line, score, right, len(one.input), label))
    key = CalibrationKey(
        task_digest=spec.digest,
        model=rows[0]["model"],
        model_digest=rows[0]["model_digest"],
        runtime=rows[0]["runtime"],
        estimator=labels.estimator_of(likeness[0]),
    )
    return judged, key, earlier


def _likeness(client: DaemonClient, spec: TaskSpec, inputs: Sequence[str]) -> list[LabelScores]:
    """Return how like each input the labels are, in the order of the task's; nothing where no encoder is at hand."""
    from agent.cli import task_signals
    from agent.label_likeness import label_texts, likeness
    from agent.likelihoods import LabelScores

    texts = label_texts(spec.names, spec.labels)
    try:
        found = task_signals.vectors(client, spec.name, [*texts, *inputs])
    except OutriderError as error:
        notice(f"the language model is asked alone, since no encoder says how like the labels are: {error}")
        return [LabelScores() for _ in inputs]
    rows = found.rows
    of_labels = rows[: len(texts)]
    return [LabelScores(likeness=likeness(row, of_labels), encoder=found.model_digest) for row in rows[len(texts) :]]


def _is_right(spec: TaskSpec, one: Example, row: dict[str, Any]) -> bool | None:
    from agent.evaluation import matching
    from agent.tasks import TaskKind

    if one.answer is None:
        return None
    if spec.kind is TaskKind.LABELS:
        return bool(row["answer"] == one.answer)
    return matching.verdict(spec, one.answers, one.verdict, row)


def _label(spec: TaskSpec, row: dict[str, Any]) -> str | None:
    from agent.tasks import TaskKind

    return str(row["answer"]) if spec.kind is TaskKind.LABELS else None


def _tell(found: Calibration, written: Sequence[str], *, stored: bool) -> None:
    from agent.evaluation import certifying, pictures

    report = found.report
    click.echo(found.sentence)
    click.echo("")
    if report.curve:
        click.echo(
            f"examples {report.examples}, right {report.right} ({report.right / report.examples:.1%}), "
            f"served {report.served}, of those wrong {report.errors}, without a score {report.no_signal}"
        )
        click.echo(
            f"map {found.map.kind}, ECE {report.expected_error:.3f} "
            f"({report.expected_error_floor:.3f} if it were exactly right)"
        )
    else:
        click.echo(f"examples {report.examples}, served {report.served}, without a score {report.no_signal}")
    threshold = "none" if found.threshold is None else f"{found.threshold:.4f}"
    click.echo(f"threshold {threshold}, certificate {found.certificate}, calibration {found.id}")
    if report.curve:
        click.echo("")
        for line in pictures.in_terminal(found):
            click.echo(line)
    click.echo("")
    click.echo(certifying.VOID)
    for path in written:
        notice(f"written: {path}")
    notice(f"task {found.task} uses it from now on" if stored else "nothing is stored (--dry-run)")
