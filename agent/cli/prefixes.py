"""``outrider prefixes``: the beginnings of prompts that are kept ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, emit_json, moment, notice, size, table

if TYPE_CHECKING:
    from agent.storage.prefix_store import PrefixStore

Result = TypeVar("Result")


@click.group()
def prefixes() -> None:
    """See and erase the saved beginnings of prompts.

    Works over HTTP when the daemon runs, else straight on the files.
    """


@prefixes.command(name="list")
@json_option
@pass_invocation
def list_prefixes(invocation: Invocation, as_json: bool) -> None:
    """Print the [[prefixes]] of the configuration, and what is saved of them.

    Example:  outrider prefixes list
    """
    found = _found(invocation)
    if as_json:
        emit_json(found)
        return
    table(
        ["NAME", "MODEL", "STATE", "TOKENS", "ON DISK", "LAST USED"],
        [
            (
                one["name"],
                one["model"],
                one["state"],
                one["tokens"] or saved.get("tokens"),
                size(saved["disk_bytes"]) if saved else None,
                moment(saved.get("used_at_ms")),
            )
            for one in found
            for saved in [one["saved"] or {}]
        ],
    )
    if not found:
        notice("the configuration names none; see docs/prefixes.md")


@prefixes.command()
@click.argument("name")
@json_option
@pass_invocation
def show(invocation: Invocation, name: str, as_json: bool) -> None:
    """Print what is known of one prefix. Its text is in the configuration only.

    Example:  outrider prefixes show support
    """
    from agent.errors import NotFound

    found = next((one for one in _found(invocation) if one["name"] == name), None)
    if found is None:
        raise NotFound(f"there is no prefix {name} in the configuration; `outrider prefixes list` shows them")
    if as_json:
        emit_json(found)
        return
    saved = found["saved"] or {}
    table(
        ["FIELD", "VALUE"],
        [
            *((key, found[key]) for key in ("name", "model", "state", "tokens", "message")),
            ("on disk", size(saved["disk_bytes"]) if saved else "nothing"),
            ("saved", moment(saved.get("created_at_ms"))),
            ("last used", moment(saved.get("used_at_ms"))),
            ("model digest", saved.get("model_digest")),
        ],
    )


@prefixes.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def purge(invocation: Invocation, names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Erase what is saved on disk of these prefixes, or of all.

    One that stays in the configuration is computed and saved again when its model is loaded
    next; take it out there first to be rid of it.

    Example:  outrider prefixes purge support
    """
    from agent.cli.client import DaemonClient, find_daemon

    if not yes:
        confirm(f"erase what is saved of {', '.join(names) or 'all prefixes'}?")
    settings = invocation.settings
    if find_daemon(settings.data_path) is not None:
        body: dict[str, Any] = {"names": list(names)} if names else {"all": True}
        with DaemonClient(settings) as client:
            purged = int(client.post("/v1/prefixes/purge", body, admin=True)["purged"])
    else:
        purged = _on_disk(invocation, lambda store: store.remove(names or None))
    if as_json:
        emit_json({"purged": purged})
        return
    click.echo(f"erased: {purged}")


def _found(invocation: Invocation) -> Sequence[dict[str, Any]]:
    from agent.cli.client import DaemonClient, find_daemon

    if find_daemon(invocation.settings.data_path) is not None:
        with DaemonClient(invocation.settings) as client:
            told: list[dict[str, Any]] = client.get("/v1/prefixes")["data"]
            return told
    from agent.api.prefix_routes import prefix_objects
    from agent.engine.prefix_keeper import PrefixStatus

    default = invocation.settings.engine.model
    named = [PrefixStatus(name=one.name, model=one.model or default) for one in invocation.settings.prefixes]
    saved = _on_disk(invocation, lambda store: store.all())
    return [{**one, "state": None} for one in prefix_objects(named, saved)]


def _on_disk(invocation: Invocation, work: Callable[[PrefixStore], Coroutine[Any, Any, Result]]) -> Result:
    """Do something with the files themselves; no daemon can start meanwhile."""
    from agent.cli.key import alone
    from agent.storage import keys
    from agent.storage.prefix_store import PrefixStore

    settings = invocation.settings

    async def done(store: PrefixStore) -> Result:
        try:
            return await work(store)
        finally:
            await store.close()

    with alone(settings.data_path):
        key = keys.load(settings.data_path)
        store = PrefixStore(settings.data_path, key.material, most_bytes=settings.engine.prefix_disk_bytes)
        return asyncio.run(done(store))
