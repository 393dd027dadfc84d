"""``outrider models promote`` and ``rollback``: which model an alias stands for."""

from __future__ import annotations

from typing import Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice
from agent.errors import InvalidRequest
from agent.types import ModelFormat


@click.command()
@click.argument("candidate")
@click.option("--as", "alias", default="default", show_default=True, help="Alias that shall stand for it.")
@click.option("--dry-run", is_flag=True, help="Show what the tasks would promise, and change nothing.")
@click.option("--force", is_flag=True, help="Although a task would promise nothing any more.")
@json_option
@pass_invocation
def promote(invocation: Invocation, candidate: str, alias: str, dry_run: bool, force: bool, as_json: bool) -> None:
    """Have an alias stand for CANDIDATE, from the moment it is ready to answer.

    A running daemon loads it first and switches then; requests under way end on the earlier
    model, whose worker leaves afterwards. No request fails. Requests that name a model get that
    one, as before.

    What was calibrated for one model is never used for another: each task that promises something
    and answers by the alias is calibrated with CANDIDATE first, on the examples that are kept of
    it. Where a promise would end, nothing is changed (exit code 65), unless --force.

    Example:  outrider models promote smollm2-135m-instruct-q4_0 --as default
    """
    change = put_in_place(invocation, candidate, alias, dry_run=dry_run, force=force, quiet=as_json)
    _tell(change, as_json=as_json, changed=not dry_run)


def put_in_place(
    invocation: Invocation,
    candidate: str,
    alias: str,
    *,
    dry_run: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Have an alias stand for a model, by the daemon where one runs; return name, model and what it was before.

    Raises NotCertified where a task would promise nothing any more, unless forced.
    """
    from agent.cli import recalibrating
    from agent.cli.client import DaemonClient, find_daemon
    from agent.models.aliases import DEFAULT, Aliases
    from agent.models.store import open_store
    from agent.task_folder import folder_beside

    settings, folder = invocation.settings, folder_beside(invocation.loaded.path)
    if find_daemon(settings.data_path) is None:
        store = open_store(invocation.data_path)
        store.resolve(candidate)
        if alias == DEFAULT and store.show(candidate).format is ModelFormat.ONNX_ENCODER:
            raise InvalidRequest(f"{candidate} writes no text: {DEFAULT} is what answers chats", param="model")
        aliases = Aliases(store.blobs.root, settings.engine.model)
        if aliases.target(alias) != candidate:
            recalibrating.without_daemon(folder, alias, candidate, force=force)
        before = None if dry_run else aliases.promote(alias, candidate)
        return {"name": alias, "model": candidate, "before": before, "tasks": []}
    with DaemonClient(settings) as client:
        found = recalibrating.renewed(client, folder, alias, candidate)
        if not quiet:
            recalibrating.tell(found)
        told: dict[str, Any] = {"name": alias, "model": candidate, "before": None}
        if not dry_run:
            recalibrating.require_promises(found, alias, candidate, force=force)
            renewals = [one.renewal for one in found if one.renewal]
            body = {"model": candidate, "as": alias, "tasks": renewals, "force": force}
            patience_s = settings.engine.load_timeout_s + 10
            told = client.post("/v1/aliases/promote", body, admin=True, timeout_s=patience_s)
    return told | {"tasks": [one.told for one in found]}


@click.command()
@click.argument("alias", default="default")
@json_option
@pass_invocation
def rollback(invocation: Invocation, alias: str, as_json: bool) -> None:
    """Have ALIAS stand for the model that it stood for before. Can be repeated.

    A task whose last calibration with that model still fits promises that again. Those that
    promise nothing now are named.

    Example:  outrider models rollback default
    """
    from agent.cli.client import DaemonClient, find_daemon
    from agent.models.aliases import Aliases
    from agent.models.store import open_store

    def alone() -> dict[str, Any]:
        store = open_store(invocation.data_path)
        aliases = Aliases(store.blobs.root, invocation.settings.engine.model)
        model = aliases.earlier(alias)
        store.resolve(model)
        return {"name": alias, "model": model, "before": aliases.roll_back(alias)}

    settings = invocation.settings
    if find_daemon(settings.data_path) is None:
        change = alone()
    else:
        with DaemonClient(settings) as client:
            patience_s = settings.engine.load_timeout_s + 10
            change = client.post("/v1/aliases/rollback", {"as": alias}, admin=True, timeout_s=patience_s)
    _tell(change, as_json=as_json)
    if renewed := change.get("renewed"):
        notice(f"calibrated with this model before, and promised again: {', '.join(renewed)}")
    if ended := change.get("ended"):
        notice(f"these tasks promise nothing now, `outrider calibrate` does it anew: {', '.join(ended)}")


def _tell(change: dict[str, Any], *, as_json: bool, changed: bool = True) -> None:
    if as_json:
        emit_json(change)
        return
    if not changed:
        notice("nothing was changed (--dry-run)")
        return
    before = f", before: {change['before']}" if change["before"] else ""
    click.echo(f"{change['name']} is {change['model']}{before}")
