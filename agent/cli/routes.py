"""``outrider routes``: what the routing rules do with requests, before any request meets them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, notice, shorten, table
from agent.errors import ConfigError, InvalidRequest, OutriderError

if TYPE_CHECKING:
    from agent.routing import Policy
    from agent.types import InferenceRequest

SURE, UNSURE = 1.0, 0.0


@click.group()
def routes() -> None:
    """Check the routing rules, and try them on requests."""


@routes.command()
@click.option("--paths", is_flag=True, help="Print every path and where it ends.")
@json_option
@pass_invocation
def check(invocation: Invocation, paths: bool, as_json: bool) -> int:
    """Prove that every path through the rules ends, and name rules that cannot do what they say.

    Every rule, route mode and outcome of the local model is walked through the functions that
    decide about requests. Exit code 78 when a rule names what is not there, or never decides.

    Example:  outrider routes check --paths
    """
    from agent.route_check import check as walk
    from agent.task_folder import folder_beside

    settings = invocation.settings
    tasks = folder_beside(invocation.loaded.path).names()
    found = walk(_policy(invocation), tasks=tasks, keys=[one.name for one in settings.keys])
    if as_json:
        emit_json(
            {"holds": found.holds, "problems": found.problems, "paths": found.paths if paths else len(found.paths)}
        )
        return 0 if found.holds else ConfigError.exit_code
    if paths:
        table(
            ["BEFORE", "MODE", "LOCAL MODEL", "AFTER", "ENDS", "TARGET"],
            [(one.before, one.mode, one.outcome, one.after, one.end, one.target) for one in found.paths],
        )
    ends = Counter(one.end.value for one in found.paths)
    click.echo(
        f"{counted(len(found.paths), 'path')}, every one ends: " + ", ".join(f"{n} {end}" for end, n in ends.items())
    )
    for problem in found.problems:
        notice(f"{'WRONG' if problem.fatal else 'note'}: rule {problem.rule}: {problem.what}")
    return 0 if found.holds else ConfigError.exit_code


@routes.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@json_option
@pass_invocation
def test(invocation: Invocation, file: IO[str], as_json: bool) -> None:
    """Show for each line of FILE (JSON lines) what would become of it, and what it would cost. Nothing is asked or sent.

    A line is a body of /v1/chat/completions or /v1/classify, or {"text": ...}; "confidence" (0 to 1) or "failure" beside it say what
    the local model would do. Without them both are shown: a sure answer and an unsure one. A
    rule on a topic counts the text as unfamiliar here: that takes the encoder.

    Example:  outrider routes test requests.jsonl
    """
    from agent.escalation.prices import written

    trials = list(_trials(invocation, file))
    least = sum((one["dollars_least"] for one in trials if one["dollars_least"] is not None), Decimal(0))
    most = sum((one["dollars_most"] for one in trials if one["dollars_most"] is not None), Decimal(0))
    unknown = sum(one["dollars_most"] is None for one in trials)
    if as_json:
        totals = {"lines": len(trials), "dollars_least": f"{least:f}", "dollars_most": f"{most:f}", "unpriced": unknown}
        emit_json({"data": [_plain(one) for one in trials], "totals": totals})
        return
    table(
        ["LINE", "TEXT", "RULE", "MODE", "THEN", "TARGET", "EGRESS", "TOKENS", "COST"],
        [
            (
                one["line"],
                shorten(one["text"], 32),
                one["rule"],
                one["mode"],
                "; ".join(f"{outcome}: {end}" for outcome, end in one["ends"].items()) or one["error"],
                one["target"] if one["may_leave"] else "",
                one["egress"] if one["may_leave"] else "",
                one["tokens"] if one["may_leave"] else "",
                written(one["dollars_most"]) if one["target"] and one["may_leave"] else "",
            )
            for one in trials
        ],
    )
    notice(
        f"{counted(len(trials), 'line')}: from {written(least)} to {written(most)}"
        + (f", {unknown} of unknown price" if unknown else "")
    )


def _trials(invocation: Invocation, file: IO[str]) -> Iterator[dict[str, Any]]:
    from agent.escalation.prices import PriceBook

    policy = _policy(invocation)
    prices = PriceBook(invocation.settings.targets, invocation.settings.prices)
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"line {number} is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidRequest(f"line {number} is not a JSON object")
        yield {"line": number, **_trial(invocation, policy, prices, body)}


def _trial(invocation: Invocation, policy: Policy, prices: Any, body: dict[str, Any]) -> dict[str, Any]:
    from agent import routing
    from agent.route_check import End, end_of
    from agent.token_estimate import estimate
    from agent.types import Confidence, Failure, FailureKind, Generation

    score, failure = body.pop("confidence", None), body.pop("failure", None)
    if (score is not None and not isinstance(score, int | float)) or failure not in (None, *FailureKind):
        raise InvalidRequest(f"confidence is a number, failure one of {', '.join(FailureKind)}")
    request = _request(invocation, body)
    text = request.messages[-1].content
    try:
        route = routing.before(request, policy, policy.rules.look(request))
    except OutriderError as error:
        nothing = {"mode": None, "target": None, "egress": None, "tokens": 0, "may_leave": False}
        costs = {"dollars_least": Decimal(0), "dollars_most": Decimal(0)}
        return {"text": text, "rule": None, "error": str(error), "ends": {}, **nothing, **costs}
    given = {"": score} if score is not None else {"sure": SURE, "unsure": UNSURE}
    outcomes: dict[str, tuple[Generation | None, float | None]] = {
        f"{name} {figure}".strip() if score is not None else name: (Generation(text="x"), figure)
        for name, figure in given.items()
    }
    if failure is not None:
        outcomes = {failure: (Generation(failure=Failure(FailureKind(failure), "tried")), None)}
    if not route.use_local or route.straight:
        outcomes = {"always": (None if not route.use_local else Generation(text="x"), None)}
    decisions = {
        name: routing.after(
            request,
            route,
            generation,
            Confidence(score=figure, estimator="tried@1") if generation is not None else None,
            policy,
        )
        for name, (generation, figure) in outcomes.items()
    }
    last = list(decisions.values())[-1]
    expected = estimate(request, None, last.handoff)
    dollars = prices.cost(last.target, expected.input_tokens, expected.output_tokens)
    leaves = [end_of(one) in {End.SENT, End.APPROVAL} for one in decisions.values()]
    return {
        "text": text,
        "rule": last.rule_id
        if last.rule_id in {one.name for one in policy.rules.settings}
        else (route.rule.name if route.rule else None),
        "mode": route.mode,
        "target": last.target,
        "egress": last.egress,
        "tokens": expected.input_tokens + expected.output_tokens,
        "ends": {name: end_of(one).value for name, one in decisions.items()},
        "trace": list(last.trace),
        "error": None,
        "may_leave": any(leaves),
        "dollars_least": dollars if all(leaves) else Decimal(0),
        "dollars_most": dollars if any(leaves) else Decimal(0),
    }


def _request(invocation: Invocation, body: Mapping[str, Any]) -> InferenceRequest:
    from starlette.datastructures import Headers

    from agent.api.chat_request import parse_chat
    from agent.api.classify_request import parse_classify
    from agent.api.task_request import as_task, task_name, with_model, with_policies
    from agent.task_folder import folder_beside

    settings = invocation.settings
    if "text" in body:
        body = {
            **{name: value for name, value in body.items() if name != "text"},
            "messages": [{"role": "user", "content": body["text"]}],
        }
    task = task_name(body)
    spec = folder_beside(invocation.loaded.path).get(task) if task is not None else None
    defaults = settings.routing if spec is None else with_policies(settings.routing, spec)
    parse = parse_classify if "input" in body else parse_chat
    call = parse(with_model(body), Headers(), server=settings.server, routing=defaults, now_ms=0)
    return as_task(call.request, spec, names_model=bool(body.get("model"))) if spec is not None else call.request


def _policy(invocation: Invocation) -> Policy:
    from agent.policy import routing_policy
    from agent.rules import Rulebook

    settings = invocation.settings
    return routing_policy(settings, Rulebook(settings.routing.rules))


def _plain(trial: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in trial.items()}
