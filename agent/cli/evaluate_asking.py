"""Asking for the answers of an evaluation: the daemon's models one case after the other, and, where allowed, the target."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agent.cli.output import notice
from agent.errors import InvalidRequest, OutriderError, WrongState
from agent.evaluation.cases import Case
from agent.evaluation.energy import EnergyMeter
from agent.evaluation.judging import Asked
from agent.evaluation.variants import Reply, RouteName, Variant
from agent.experiments import EVALUATION_METADATA
from agent.strictness import stricter
from agent.tasks import TaskKind, TaskSpec
from agent.types import EgressPolicy

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.escalation.prices import Price
    from agent.settings import Settings, TargetSettings

PATIENCE_S = 600.0
DEADLINE_MS = 120_000  # of one case, by the target
TELL_EVERY_S = 5.0
BYTES_PER_TOKEN = 4
MOST_FAILURES = 5  # in a row, before the target is given up


class Cloud(msgspec.Struct, frozen=True):
    """The target's answers, and what a person should know of them."""

    variant: Variant
    notes: tuple[str, ...] = ()


class _Progress:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._told_at = time.monotonic()

    def step(self, done: int) -> None:
        if time.monotonic() - self._told_at > TELL_EVERY_S:
            click.echo(f"{self._what}: {done} of {self._total}", err=True)
            self._told_at = time.monotonic()


def taught_texts(client: DaemonClient, spec: TaskSpec) -> set[bytes]:
    """Return the digests of the texts that taught the task. Raises WrongState for another task of the name."""
    import base64

    told = client.get(f"/v1/tasks/{spec.name}")
    if told["digest"] != spec.digest:
        raise WrongState(f"the daemon knows another task {spec.name}: does it run with the same --config?")
    found: set[bytes] = set()
    for what in ("head", "appraiser"):
        if told.get(what) is not None:
            found |= {base64.b64decode(text) for text in client.get(f"/v1/tasks/{spec.name}/{what}")["texts"]}
    return found


def ask_local(
    client: DaemonClient, spec: TaskSpec, cases: Sequence[Case], model: str | None, per_hour: Decimal
) -> Asked:
    """Have a local model answer the cases, one after the other; nothing of it is stored or escalated.

    ``per_hour``: dollars of the machine. A case that the model fails on has no answer.
    """
    name = model or spec.model or "default"
    _one(client, spec, cases[0], model)  # the model is loaded, its prompt cached: what comes is what traffic sees
    meter = EnergyMeter()
    progress = _Progress(f"{name}, answers", len(cases))
    replies, failures, longest = [], [], 0
    digests = set()
    for number, case in enumerate(cases):
        started = time.perf_counter()
        row, failure = _one(client, spec, case, model)
        taken_ms = (time.perf_counter() - started) * 1000
        progress.step(number)
        if row is None:
            failures.append(f"line {case.line}: {failure}")
            replies.append(Reply(answer=None, served=False, latency_ms=taken_ms))
            continue
        digests.add(row["model_digest"])
        longest = max(longest, row["input_tokens"])
        name = row["model"] or name
        replies.append(
            Reply(
                answer=row["answer"],
                calls=tuple(row["tool_calls"]),
                served=row["served"],
                probability=row["probability"],
                latency_ms=taken_ms,
                input_dollars=Decimal(0),
                output_dollars=per_hour * Decimal(taken_ms) / 3_600_000,
            )
        )
    if len(digests) > 1:
        raise WrongState("the model was replaced meanwhile: begin again")
    if failures:
        notice(f"{name}: no answer to {len(failures)} cases ({failures[0]})")
    joules = meter.joules()
    return Asked(
        variant=Variant(model=name, route=RouteName.LOCAL, replies=tuple(replies)),
        joules=None if joules is None else joules / len(cases),
        energy="" if joules is not None else meter.reason,
        longest_tokens=longest,
    )


def _one(client: DaemonClient, spec: TaskSpec, case: Case, model: str | None) -> tuple[dict[str, Any] | None, str]:
    body: dict[str, Any] = {"input": case.input, "model": model}
    if case.tools:
        body["tools"] = list(case.tools)
    try:
        told: dict[str, Any] = client.post(f"/v1/tasks/{spec.name}/trials", body, timeout_s=PATIENCE_S)
    except OutriderError as error:
        if error.code in {"context_length_exceeded", "deadline_exceeded"}:  # of this case, not of all
            return None, str(error)
        raise
    if told["task_digest"] != spec.digest:
        raise WrongState(f"the daemon knows another task {spec.name}: does it run with the same --config?")
    return told, ""


def check_cloud(settings: Settings, spec: TaskSpec) -> TargetSettings:
    """Return the target that may be asked. Raises InvalidRequest where policy forbids it or wants a person for each row."""
    target = next((one for one in settings.targets if one.egress is not EgressPolicy.NEVER), None)
    if target is None:
        raise InvalidRequest("--cloud: no target is configured that may be asked (outrider target add)")
    egress = stricter(target.egress, spec.egress, settings.egress.policy)
    if egress is EgressPolicy.NEVER:
        raise InvalidRequest(f'--cloud: what task {spec.name} is asked may not leave this device (egress = "never")')
    if egress is EgressPolicy.APPROVE:
        raise InvalidRequest(
            f'--cloud: each input of task {spec.name} would wait for a person (egress = "approve"): set redact or '
            'allow for the target and the task, or bring the answers in "cloud"'
        )
    return target


def ask_cloud(
    client: DaemonClient, settings: Settings, spec: TaskSpec, cases: Sequence[Case], target: TargetSettings
) -> Cloud:
    """Have the target answer the cases, through the queue: policy, redaction, budget and log hold as for any request."""
    price = _price(settings, target)
    progress = _Progress(f"target {target.name}, answers", len(cases))
    replies: list[Reply] = []
    model, missing, in_a_row = "", 0, 0
    for number, case in enumerate(cases):
        progress.step(number)
        if in_a_row >= MOST_FAILURES:
            raise WrongState(
                f"target {target.name} did not answer {MOST_FAILURES} cases in a row: see `outrider queue list`; "
                "what it still answers is paid for"
            )
        reply, said_model = _from_target(client, spec, case, price)
        in_a_row = in_a_row + 1 if reply.answer is None else 0
        missing += reply.answer is None
        model = said_model or model
        replies.append(reply)
    notes = [f"{missing} cases have no answer of the target"] if missing else []
    if price is None:
        notes.append(f"the price of target {target.name} is unknown: so is what the cloud costs")
    return Cloud(Variant(model=model or target.model, route=RouteName.CLOUD, replies=tuple(replies)), tuple(notes))


def _from_target(client: DaemonClient, spec: TaskSpec, case: Case, price: Price | None) -> tuple[Reply, str]:
    policy = {"route_mode": "cloud_only", "on_low_confidence": "wait", "deadline_ms": DEADLINE_MS}
    body: dict[str, Any] = {"metadata": {"task": spec.name, EVALUATION_METADATA: "1"}, "outrider": policy}
    path = "/v1/chat/completions"
    if spec.kind is TaskKind.LABELS:
        path, body = "/v1/classify", {**body, "input": case.input}
    else:
        body["messages"] = [{"role": "user", "content": case.input}]
        if case.tools:
            body["tools"] = list(case.tools)
    started = time.perf_counter()
    try:
        told = client.post(path, body, timeout_s=DEADLINE_MS / 1000 + 30)
    except OutriderError as error:
        if error.exit_code == InvalidRequest.exit_code and error.code != "unresolved":
            raise
        return Reply(answer=None, local=False), ""
    taken_ms = (time.perf_counter() - started) * 1000
    if told["outrider"]["state"] != "resolved":
        return Reply(answer=None, local=False, latency_ms=taken_ms), ""
    message = told if spec.kind is TaskKind.LABELS else told["choices"][0]["message"]
    calls = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls") or ()
    ]
    used = told["usage"]
    return Reply(
        answer=message["label"] if spec.kind is TaskKind.LABELS else message.get("content") or "",
        calls=tuple(calls),
        local=False,
        latency_ms=taken_ms,
        input_dollars=_dollars(price, used, "prompt_tokens"),
        output_dollars=_dollars(price, used, "completion_tokens"),
    ), str(told["model"])


def recorded_cloud(settings: Settings, cases: Sequence[Case]) -> Cloud:
    """Return the answers that the cases carry. Nothing is sent; what they cost is estimated, their time is unknown."""
    target = next(iter(settings.targets), None)
    price = _price(settings, target) if target else None
    replies = []
    for case in cases:
        used = {"prompt_tokens": _tokens(case.input), "completion_tokens": _tokens(case.cloud or "")}
        reply = Reply(
            answer=case.cloud,
            local=False,
            input_dollars=_dollars(price, used, "prompt_tokens"),
            output_dollars=_dollars(price, used, "completion_tokens"),
        )
        replies.append(reply)
    notes = [
        "the cloud's answers are those in the file; their tokens are estimated, a token for 4 bytes of input and answer"
    ]
    if price is None:
        notes.append("no target has a price: what the cloud costs is unknown")
    model = target.model if target else ""
    return Cloud(Variant(model=model, route=RouteName.CLOUD, replies=tuple(replies)), tuple(notes))


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def _price(settings: Settings, target: TargetSettings) -> Price | None:
    from agent.escalation.prices import PriceBook

    return PriceBook(settings.targets, settings.prices).target(target.name)


def _dollars(price: Price | None, used: Mapping[str, int], name: str) -> Decimal | None:
    """Return what the tokens of one direction cost. A target that counted none at all has told nothing."""
    if price is None or not any(used.get(one) for one in ("prompt_tokens", "completion_tokens")):
        return None
    count = used[name]
    return price.cost(count, 0) if name == "prompt_tokens" else price.cost(0, count)
