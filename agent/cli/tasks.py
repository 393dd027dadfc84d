"""``outrider tasks``: named workloads, their labels and what they promise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import task_asking
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, emit_json, moment, notice, table
from agent.cli.task_export import export
from agent.cli.teach import teach
from agent.errors import ConfigError, OutriderError

if TYPE_CHECKING:
    from agent.task_folder import TaskFolder


@click.group()
def tasks() -> None:
    """Make, see and teach tasks: named workloads that can be calibrated.

    A task is a file, tasks/NAME.toml beside outrider.toml. Requests name it by metadata.task, or
    by "task" of /v1/classify.
    """


tasks.add_command(teach)
tasks.add_command(export)


@tasks.command()
@click.argument("name", required=False)
@click.option("--kind", type=click.Choice(["labels", "extract", "tool", "text"]), help="Default: labels.")
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL[=DESCRIPTION]", help="A label of the task. Repeatable."
)
@click.option("--prompt", default="", help="What the model is told. Default: made of the labels.")
@click.option("--schema", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON schema (extract).")
@click.option("--tools", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="List of functions (tool).")
@click.option(
    "--match", type=click.Choice(["exact", "normalised", "numeric", "fields"]), help="When a written answer is right."
)
@click.option("--model", default="", help="Whose answers these are. Default: the default model.")
@click.option(
    "--egress", type=click.Choice(["never", "approve", "redact", "allow"]), help="The loosest that may leave."
)
@click.option(
    "--on-low-confidence", type=click.Choice(["draft", "wait", "defer", "abstain"]), help="What a caller gets then."
)
@click.option("--accuracy", type=float, help="Of the answers that are served, 0..1: what is to be certified.")
@click.option(
    "--quality-sample", type=float, help="Share of the served answers that goes up to be checked, 0..1. Default: 0."
)
@click.option(
    "--preset",
    type=click.Choice(["moderation", "intent", "triage"]),
    help="Labels and examples that come with Outrider; docs/tasks.md says what they are worth. Name: the preset's own.",
)
@json_option
@pass_invocation
def new(
    invocation: Invocation,
    name: str | None,
    kind: str | None,
    labels: tuple[str, ...],
    prompt: str,
    schema: Path | None,
    tools: Path | None,
    match: str | None,
    model: str,
    egress: str | None,
    on_low_confidence: str | None,
    accuracy: float | None,
    quality_sample: float | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """Make a task. On a terminal, what is left out is asked for.

    A preset also writes tasks/NAME.examples.jsonl, to teach it with and to add to.

    Example:  outrider tasks new mail --label "refund=wants money back" --label "card lost" --accuracy 0.95
    """
    import json

    from agent.tasks import task_of

    if preset is not None:
        if kind or labels or schema is not None:
            raise ConfigError(f"preset {preset} has its own labels: leave out --kind, --label and --schema")
        own = {"prompt": prompt, "model": model, "egress": egress, "on_low_confidence": on_low_confidence}
        more = {**own, "quality_sample": quality_sample}
        _new_of_preset(invocation, preset, name or preset, more, accuracy, as_json=as_json)
        return
    asking = sys.stdin.isatty() and not as_json
    if name is None:
        if not asking:
            raise ConfigError("name the task: outrider tasks new NAME --label ONE --label OTHER")
        notice("A task is a kind of request that comes again and again: mails to be sorted, fields to be read.")
        name = click.prompt("name (lower-case letters, digits, - and _)", err=True)
    tree: dict[str, Any] = {"name": name}
    tree["kind"] = kind or (
        task_asking.asked_kind() if asking and not labels and not schema else "extract" if schema else "labels"
    )
    described = dict(task_asking.label_of(text) for text in labels)
    if tree["kind"] == "labels":
        if asking and not described:
            described = task_asking.asked_labels()
        tree["labels"] = described
    elif described:
        raise ConfigError("--label belongs to kind labels")
    for key, file in (("schema", schema), ("tools", tools)):
        if file is not None:
            try:
                tree[key] = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{file} is not JSON: {error}") from error
    if asking and not prompt and tree["kind"] != "labels":
        prompt = click.prompt("what the model is told (empty: nothing)", default="", show_default=False, err=True)
    if asking and accuracy is None:
        notice("How many of the answers served here must be right? Doubtful ones are escalated or held.")
        accuracy = click.prompt("accuracy", default=0.95, type=float, err=True)
    if asking and egress is None:
        notice("What may leave the device when it is not sure? Nothing leaves unless a target is configured.")
        egress = click.prompt(
            "egress", default="never", type=click.Choice(["never", "approve", "redact", "allow"]), err=True
        )
    if asking and quality_sample is None:
        quality_sample = task_asking.asked_quality_sample(egress)
    given = {"prompt": prompt, "model": model, "egress": egress, "on_low_confidence": on_low_confidence, "match": match}
    tree |= {key: value for key, value in given.items() if value}
    if accuracy is not None:
        tree["target"] = {"accuracy": accuracy}
    if quality_sample:
        tree["quality_sample"] = quality_sample
    spec = task_of(tree, f"task {name}")
    path = _folder(invocation).put(spec)
    if as_json:
        emit_json({"task": spec, "path": str(path)})
        return
    click.echo(f"task {spec.name} is in {path}")
    if spec.kind == "labels":
        notice(
            'next, with examples like {"input": "where is my card?", "label": "' + spec.names[0] + '"}, one a line:\n'
            f"  outrider tasks teach {spec.name} examples.jsonl --hold-back 0.5\n"
            f"  outrider calibrate {spec.name} examples.jsonl --accuracy {accuracy or 0.95:g}"
        )
    else:
        notice(
            'next, with examples like {"input": "...", "answer": "..."}, one a line:\n'
            f"  outrider tasks teach {spec.name} examples.jsonl --hold-back 0.5\n"
            f"  outrider calibrate {spec.name} examples.jsonl --accuracy {accuracy or 0.95:g}"
        )


def _new_of_preset(
    invocation: Invocation,
    preset: str,
    name: str,
    given: dict[str, Any],
    accuracy: float | None,
    *,
    as_json: bool,
) -> None:
    from agent.presets import preset_examples, preset_tree
    from agent.tasks import task_of

    tree = {**preset_tree(preset), "name": name, **{key: value for key, value in given.items() if value}}
    if accuracy is not None:
        tree["target"] = {"accuracy": accuracy}
    spec = task_of(tree, f"task {name}")
    examples = _folder(invocation).path / f"{name}.examples.jsonl"
    if examples.exists():
        raise ConfigError(f"{examples} exists already: remove it first, or choose another name")
    path = _folder(invocation).put(spec)
    try:
        examples.write_text(preset_examples(preset), encoding="utf-8")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"{examples} cannot be written: {error.strerror}") from error
    if as_json:
        emit_json({"task": spec, "path": str(path), "examples": str(examples)})
        return
    click.echo(f"task {name} is in {path}, its examples in {examples}")
    notice(
        f"next:  outrider tasks teach {name} {examples}\n"
        "these examples are general: add some of your own traffic; with 200 or more that did not teach\n"
        f"  outrider calibrate {name} YOURS.jsonl --accuracy {accuracy or 0.95:g}"
    )


@tasks.command(name="list")
@json_option
@pass_invocation
def list_tasks(invocation: Invocation, as_json: bool) -> None:
    """Print the tasks; with the daemon running, also what was learned and is promised of each.

    Example:  outrider tasks list
    """
    rows = _all(invocation)
    if as_json:
        emit_json(rows)
        return
    if not rows:
        notice("no task: make one with `outrider tasks new`")
        return
    table(
        ["NAME", "KIND", "LABELS", "TAUGHT", "GUARANTEE", "WRONG"],
        [
            (
                row["name"],
                row.get("kind"),
                len(row.get("labels", {})) or None,
                _taught(row),
                _promise(row),
                row.get("error"),
            )
            for row in rows
        ],
    )


@tasks.command()
@click.argument("name")
@json_option
@pass_invocation
def show(invocation: Invocation, name: str, as_json: bool) -> None:
    """Print a task, what was learned of it and what is promised.

    Example:  outrider tasks show mail
    """
    spec = _folder(invocation).get(name)
    row = next(row for row in _all(invocation) if row["name"] == name)
    if as_json:
        emit_json(row)
        return
    head, calibration = row.get("head"), row.get("calibration")
    rows: list[tuple[str, object]] = [
        ("name", name),
        ("kind", spec.kind),
        ("model", spec.model),
        ("egress", spec.egress),
    ]
    rows += [(f"label {label}", text or "-") for label, text in spec.labels.items()]
    rows += [("prompt", spec.instruction), ("taught", _taught(row))]
    if appraiser := row.get("appraiser"):
        rows += [
            ("right answers", f"{appraiser['right']} of {appraiser['taught']}"),
            ("AUROC out of fold", f"{appraiser['auroc']:.3f}"),
            ("demonstrations", appraiser["demonstrations"]),
            ("samples", appraiser["samples"]),
        ]
    if head:
        rows += [("features", head["feature"]), ("accuracy out of fold", f"{head['accuracy']:.1%}")]
    rows.append(("guarantee", _promise(row)))
    if calibration:
        rows += [("promise", calibration["sentence"]), ("threshold", calibration["threshold"])]
    rows += _watched(row.get("monitor"))
    table(["FIELD", "VALUE"], rows)


@tasks.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def rm(invocation: Invocation, name: str, yes: bool, as_json: bool) -> None:
    """Remove a task: its file, what it was taught and its calibration. Requests that name it are refused then.

    Example:  outrider tasks rm mail
    """
    from agent.cli.client import DaemonClient, find_daemon

    folder = _folder(invocation)
    if name not in folder.names():
        folder.get(name)
    if not yes:
        confirm(f"remove task {name}, and what was learned of it?")
    if find_daemon(invocation.settings.data_path) is None:
        folder.remove(name)
        _forget(invocation, name)
    else:
        with DaemonClient(invocation.settings) as client:
            client.delete(f"/v1/tasks/{name}")
    if as_json:
        emit_json({"name": name, "deleted": True})
        return
    click.echo(f"removed: {name}")


def _forget(invocation: Invocation, name: str) -> None:
    """Delete what was learned of a task while no daemon runs."""
    import asyncio

    from agent.cli.access import now_ms
    from agent.storage import open_storage

    settings = invocation.settings
    if not (settings.data_path / "outrider.db").exists():
        return

    async def forget() -> None:
        storage = await open_storage(settings.data_path, settings.queue, settings.retention, now_ms=now_ms())
        try:
            await storage.tasks.forget(name, now_ms=now_ms())
        finally:
            await storage.close()

    asyncio.run(forget())


def _folder(invocation: Invocation) -> TaskFolder:
    from agent.task_folder import folder_beside

    return folder_beside(invocation.loaded.path)


def _all(invocation: Invocation) -> list[dict[str, Any]]:
    """Return all tasks as the daemon knows them, or as their files say."""
    import msgspec

    from agent.cli.client import DaemonClient, find_daemon

    if find_daemon(invocation.settings.data_path) is not None:
        with DaemonClient(invocation.settings) as client:
            told: list[dict[str, Any]] = client.get("/v1/tasks")["data"]
            return told
    folder = _folder(invocation)
    found = []
    for name in folder.names():
        try:
            spec = folder.get(name)
            found.append({**msgspec.to_builtins(spec), "kind": spec.kind.value})
        except OutriderError as error:
            found.append({"name": name, "error": str(error)})
    return found


def _watched(monitor: dict[str, Any] | None) -> list[tuple[str, object]]:
    if not monitor:
        return []
    checked = f"{monitor['checked']} served answers checked, {monitor['wrong']} wrong"
    rows: list[tuple[str, object]] = [
        ("monitor", f"{checked}; {monitor['inputs']} inputs in {monitor['windows']} windows")
    ]
    if monitor["tightened"]:
        now = "nothing is served" if monitor["threshold"] is None else f"{monitor['threshold']:.4f}"
        rows.append(("threshold, tightened", now))
    return rows + [
        (f"alarm of {alarm['kind']}", f"{moment(alarm['at_ms'])}: {alarm['why']}") for alarm in monitor["alarms"]
    ]


def _taught(row: dict[str, Any]) -> str | None:
    head = row.get("head") or row.get("appraiser")
    if not head:
        return None
    return f"by {head['taught']}" + ("" if head["current"] else ", the task has changed since")


def _promise(row: dict[str, Any]) -> str | None:
    calibration = row.get("calibration")
    if not calibration:
        return "none" if "digest" in row else None
    if not calibration["current"]:
        return f"none: changed since: {', '.join(calibration['changed'])}"
    if calibration["threshold"] is None:
        return "nothing is served"
    how = (
        calibration["certificate"]
        if calibration["delta"] is None
        else f"{calibration['certificate']} {1 - calibration['delta']:g}"
    )
    return f"{calibration['target']} {calibration['value']:g} ({how})"
