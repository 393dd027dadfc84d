"""``outrider models promote`` and ``rollback``: which model an alias stands for."""

from __future__ import annotations

from typing import Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json


@click.command()
@click.argument("candidate")
@click.option("--as", "alias", default="default", show_default=True, help="Alias that shall stand for it.")
@json_option
@pass_invocation
def promote(invocation: Invocation, candidate: str, alias: str, as_json: bool) -> None:
    """Have an alias stand for CANDIDATE, from the moment it is ready to answer.

    A running daemon loads it first and switches then; requests under way end on the earlier
    model, whose worker leaves afterwards. No request fails. Requests that name a model get that
    one, as before. What was calibrated for one model is never used for another.

    Example:  outrider models promote smollm2-135m-instruct-q4_0 --as default
    """
    _tell(put_in_place(invocation, candidate, alias), as_json=as_json)


def put_in_place(invocation: Invocation, candidate: str, alias: str) -> dict[str, Any]:
    """Have an alias stand for a model, by the daemon where one runs; return name, model and what it was before."""
    from agent.models.aliases import Aliases
    from agent.models.store import open_store

    def alone() -> dict[str, Any]:
        store = open_store(invocation.data_path)
        store.resolve(candidate)
        aliases = Aliases(store.blobs.root, invocation.settings.engine.model)
        return {"name": alias, "model": candidate, "before": aliases.promote(alias, candidate)}

    return _changed(invocation, "promote", {"model": candidate, "as": alias}, alone)


@click.command()
@click.argument("alias", default="default")
@json_option
@pass_invocation
def rollback(invocation: Invocation, alias: str, as_json: bool) -> None:
    """Have ALIAS stand for the model that it stood for before. Can be repeated.

    Example:  outrider models rollback default
    """
    from agent.models.aliases import Aliases
    from agent.models.store import open_store

    def alone() -> dict[str, Any]:
        store = open_store(invocation.data_path)
        aliases = Aliases(store.blobs.root, invocation.settings.engine.model)
        model = aliases.earlier(alias)
        store.resolve(model)
        return {"name": alias, "model": model, "before": aliases.roll_back(alias)}

    _tell(_changed(invocation, "rollback", {"as": alias}, alone), as_json=as_json)


def _changed(invocation: Invocation, verb: str, body: dict[str, str], alone: Any) -> dict[str, Any]:
    """Have the daemon do it, or do it in the store when there is none."""
    from agent.cli.client import DaemonClient, find_daemon

    settings = invocation.settings
    if find_daemon(settings.data_path) is None:
        done: dict[str, Any] = alone()
        return done
    with DaemonClient(settings) as client:
        patience_s = settings.engine.load_timeout_s + 10
        told: dict[str, Any] = client.post(f"/v1/aliases/{verb}", body, admin=True, timeout_s=patience_s)
        return told


def _tell(change: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        emit_json(change)
        return
    before = f", before: {change['before']}" if change["before"] else ""
    click.echo(f"{change['name']} is {change['model']}{before}")
