"""``outrider models rm`` and ``gc``: give space back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import counted, emit_json, notice, size, table

if TYPE_CHECKING:
    from agent.models.collecting import Leftover


@click.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Although an alias, an adapter or a loaded worker uses it.")
@json_option
@pass_invocation
def rm(invocation: Invocation, name: str, force: bool, as_json: bool) -> None:
    """Remove the model NAME and those of its files that no other model has.

    What was measured of it goes too. models.lock.json still knows which bytes the name means. A
    model out of an installed package comes back at its next use.

    Example:  outrider models rm qwen2.5-0.5b-instruct
    """
    from agent.errors import WrongState
    from agent.models.collecting import remove_model

    store = model_store(invocation)
    uses = _uses(invocation, name)
    if uses and store.get(name) and not force:
        raise WrongState(f"{name} is used: {'; '.join(uses)}. Use --force to remove it all the same", param="model")
    done = remove_model(store, name)
    if as_json:
        emit_json({"name": done.name, "bytes": done.bytes, "shared_with": done.shared, "used": uses})
        return
    for use in uses:
        notice(f"outrider: forced: {use}")
    click.echo(f"{done.name} is removed: {size(done.bytes)} freed")
    if done.shared:
        notice(f"files that {', '.join(done.shared)} also has stay")
    if store.manifest.find(name):
        notice("it is in the catalogue: its next use or `outrider pull` brings it back")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--all", "everything", is_flag=True, help="Also what an interrupted pull or quantize could go on with.")
@json_option
@pass_invocation
def gc(invocation: Invocation, dry_run: bool, everything: bool, as_json: bool) -> None:
    """Remove files that no model has, and what interrupted calls left more than a week ago.

    Dead build environments go too. What a pull, a quantize or a setup works on now is never touched.

    Example:  outrider models gc --dry-run
    """
    from agent.models.collecting import collect

    found = collect(model_store(invocation), everything=everything, dry_run=dry_run)
    if as_json:
        emit_json({"dry_run": dry_run, "bytes": found.bytes, "removed": found.removed, "kept": found.kept})
        return
    if found.removed:
        _table(found.removed)
    would = "would be freed" if dry_run else "freed"
    click.echo(f"{size(found.bytes)} {would}")
    if found.kept:
        spare = size(sum(one.bytes for one in found.kept))
        notice(f"{counted(len(found.kept), 'leftover')} of {spare} could still be of use; --all removes them too")


def _table(leftovers: Sequence[Leftover]) -> None:
    table(["KIND", "SIZE", "NAME"], [(one.kind, size(one.bytes), one.name[:24]) for one in leftovers])


def _uses(invocation: Invocation, name: str) -> list[str]:
    """Return who uses a model now, in words."""
    from agent.cli.client import DaemonClient, find_daemon
    from agent.models.aliases import Aliases

    settings = invocation.settings
    aliases = Aliases(settings.data_path / "models", settings.engine.model).all()
    uses = [f"the alias {alias} stands for it" for alias, model in aliases.items() if model == name]
    uses += [f"the adapter {adapter.name} is based on it" for adapter in settings.adapters if adapter.model == name]
    if find_daemon(settings.data_path) is not None:
        with DaemonClient(settings) as client:
            loaded = [one for one in client.get("/v1/models")["data"] if one["outrider"]["loaded"]]
        if any(name in {one["id"], one["root"]} for one in loaded):
            uses.append("the running daemon has it loaded")
    return uses
