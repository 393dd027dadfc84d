"""``outrider tasks export``: what people and targets said of a task's answers, as examples or as training data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, notice
from agent.errors import StorageError

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.tasks import TaskSpec

PAGE = 500
BY_TARGETS = ("quality_sample", "escalation")


@click.command()
@click.argument("name")
@click.option("--finetune", is_flag=True, help="As chats (system, user, assistant), what trainers read.")
@click.option(
    "--targets",
    is_flag=True,
    help="Also answers of targets whose terms allow that (train_on_answers of the target).",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file. Default: standard output."
)
@json_option
@pass_invocation
def export(
    invocation: Invocation, name: str, finetune: bool, targets: bool, output: Path | None, as_json: bool
) -> None:
    """Write what was said of the task NAME, one JSON object a line: by people, with --targets by targets too.

    Each line has its origin. `outrider tasks teach` takes the file as it is. `outrider calibrate` takes of
    it what was drawn at random: what was only escalated, or complained about, is not like the traffic.
    Needs the running daemon.

    Example:  outrider tasks export mail -o corrected.jsonl
    """
    from agent.cli.client import DaemonClient
    from agent.task_folder import folder_beside

    spec = folder_beside(invocation.loaded.path).get(name)
    allowed = {target.name for target in invocation.settings.targets if target.train_on_answers} if targets else set()
    if targets and not allowed:
        notice("no target has train_on_answers = true: answers of targets are left out")
    with DaemonClient(invocation.settings) as client:
        lines = list(_lines(client, spec, allowed, finetune=finetune))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if output is None and as_json:
        emit_json(lines)
        return
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}") from error
    notice(f"{counted(len(lines), 'example')} in {output}")


def _lines(client: DaemonClient, spec: TaskSpec, allowed: set[str], *, finetune: bool) -> Iterator[dict[str, Any]]:
    for one in _said(client, spec.name):
        text, answer, origin = one["said"]["input"], one["said"]["right_answer"], one["origin"]
        if text is None or answer is None:
            continue
        if origin in BY_TARGETS and one["said"]["by"] not in allowed:
            continue
        if spec.kind == "labels" and answer not in spec.labels:
            continue  # of the task as it was
        if finetune:
            messages = [{"role": message.role, "content": message.content} for message in spec.messages(text)]
            yield {"messages": [*messages, {"role": "assistant", "content": answer}]}
            continue
        key = "label" if spec.kind == "labels" else "answer"
        found = {"input": text, key: answer, "origin": origin, "served": one["served"]}
        if one["propensity"] is not None:
            found["propensity"] = one["propensity"]
        yield found


def _said(client: DaemonClient, task: str) -> Iterator[dict[str, Any]]:
    """Yield what was said of a task, of each request the last word of a person, else that of a target."""
    found: dict[str, dict[str, Any]] = {}
    after: str | None = None
    while True:
        page = client.get_as_admin("/v1/feedback", task=task, limit=PAGE, after=after)
        for one in page["data"]:
            known = found.get(one["request_id"])
            if known is None or one["origin"] not in BY_TARGETS or known["origin"] in BY_TARGETS:
                found[one["request_id"]] = one
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    yield from found.values()
