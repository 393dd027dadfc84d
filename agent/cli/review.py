"""``outrider review``: a person looks at what the device was not sure of, and at a random draw of what it served."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, notice, printable, shorten, table
from agent.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient

PER_MILLE = 1000


@click.command()
@click.argument("request_id", required=False)
@click.option("--task", help="Only what is of this task.")
@click.option("--approve", is_flag=True, help="The local answer of REQUEST_ID is right.")
@click.option("--correct", metavar="ANSWER", help="It is wrong: this is right.")
@click.option("--label", metavar="ANSWER", help="This is right, whatever was answered.")
@click.option("--skip", is_flag=True, help="Nobody can say.")
@click.option(
    "--served",
    type=click.FloatRange(0, 1, min_open=True),
    help="Also look at a random draw of this share of what was served: that is what the monitor counts.",
)
@click.option("--list", "only_list", is_flag=True, help="Print what there is to look at, and ask nothing.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@json_option
@pass_invocation
def review(
    invocation: Invocation,
    request_id: str | None,
    task: str | None,
    approve: bool,
    correct: str | None,
    label: str | None,
    skip: bool,
    served: float | None,
    only_list: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Say of answers whether they are right.

    A row that waits in the queue is answered by that, in the target's place: nothing of it leaves. Without REQUEST_ID it goes through what waits, one by one. What is said becomes examples:
    outrider tasks export. Needs the running daemon.

    Example:  outrider review --task mail --served 0.05
    """
    from agent.cli.client import DaemonClient

    verdicts = _verdicts(approve, correct, label, skip=skip)
    if verdicts and request_id is None:
        raise InvalidRequest("say of which request: outrider review REQUEST_ID --approve")
    if request_id is not None and len(verdicts) != 1:
        raise InvalidRequest("say one of --approve, --correct ANSWER, --label ANSWER and --skip")
    per_mille = None if served is None else max(1, round(served * PER_MILLE))
    with DaemonClient(invocation.settings) as client:
        if request_id is not None:
            ((verdict, answer),) = verdicts
            drawn = None if per_mille is None else per_mille / PER_MILLE
            told = _say(client, request_id, verdict, answer, drawn)
            emit_json(told) if as_json else click.echo(_told(told))
            return
        found = client.get_as_admin("/v1/review", task=task, served=per_mille, limit=limit)["data"]
        if as_json:
            emit_json(found)
        elif only_list or not found:
            _list(found)
        elif not sys.stdin.isatty():
            raise ConfigError("nobody can answer here: list with --list, then outrider review REQUEST_ID --approve")
        else:
            _go_through(client, found)


def _verdicts(approve: bool, correct: str | None, label: str | None, *, skip: bool) -> list[tuple[str, str | None]]:
    given: list[tuple[bool, str, str | None]] = [
        (approve, "approved", None),
        (correct is not None, "corrected", correct),
        (label is not None, "labelled", label),
        (skip, "skipped", None),
    ]
    return [(verdict, answer) for is_given, verdict, answer in given if is_given]


def _say(
    client: DaemonClient, request_id: str, verdict: str, answer: str | None, drawn: float | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"request_id": request_id, "verdict": verdict, "review": True}
    body |= {key: value for key, value in (("answer", answer), ("drawn", drawn)) if value is not None}
    told: dict[str, Any] = client.post("/v1/feedback", body, admin=True)
    return told


def _told(told: dict[str, Any]) -> str:
    ended = "; its row in the queue is answered, nothing of it leaves" if told["resolved"] else ""
    return f"{told['request_id']}: {told['verdict']}{ended}"


def _list(found: list[dict[str, Any]]) -> None:
    if not found:
        notice("there is nothing to review (--served 0.05 draws from what was served)")
        return
    table(
        ["REQUEST", "TASK", "INPUT", "ANSWER", "SURE", "WHY"],
        [
            (
                one["request_id"],
                one["task"],
                shorten(one["input"]),
                None if one["answer"] is None else shorten(one["answer"], 30),
                None if one["confidence"] is None else f"{one['confidence']:.2f}",
                "drawn from what was served" if one["drawn"] else one["reason"],
            )
            for one in found
        ],
    )


def _go_through(client: DaemonClient, found: list[dict[str, Any]]) -> None:
    notice(f"{counted(len(found), 'answer')} to look at. Enter = skip, q = end.")
    for number, one in enumerate(found, start=1):
        labels: list[str] = one["labels"]
        click.echo("")
        click.secho(f"{number} of {len(found)}  {one['task'] or ''}", dim=True)
        click.echo(printable(one["input"]))
        sure = "no signal" if one["confidence"] is None else f"{one['confidence']:.2f}"
        if one["drawn"]:
            notice("served; its label is not shown, so that you judge for yourself")
        else:
            click.secho(f"answered: {printable(one['answer'] or '(nothing)')}  ({sure})", bold=True)
        if labels:
            click.echo("  ".join(f"{place}={label}" for place, label in enumerate(labels, start=1)))
        said = _asked(labels, blind=bool(one["drawn"]), has_answer=one["answer"] is not None)
        if said is None:
            return
        verdict, answer = said
        if verdict == "corrected" and answer == one["answer"]:
            verdict, answer = "approved", None
        notice(_told(_say(client, one["request_id"], verdict, answer, one["drawn"])))


def _asked(labels: list[str], *, blind: bool, has_answer: bool) -> tuple[str, str | None] | None:
    """Return verdict and answer; None to end."""
    hint = "number or label" if labels else "the right answer"
    if has_answer and not blind:
        hint = f"y = right, {hint}"
    while True:
        text = click.prompt(hint, default="", show_default=False, err=True).strip()
        if text == "q":
            return None
        if not text:
            return "skipped", None
        if text == "y" and has_answer and not blind:
            return "approved", None
        if labels and text.isdecimal() and 1 <= int(text) <= len(labels):
            text = labels[int(text) - 1]
        if labels and text not in labels:
            notice(f"{text!r} is none of the labels")
            continue
        return ("labelled" if blind or not has_answer else "corrected"), text
