"""``outrider doctor --disk``: who holds how much, against the one budget."""

from __future__ import annotations

import contextlib

import click

from agent.cli.invocation import Invocation, model_store
from agent.cli.output import emit_json, notice, size, table
from agent.disk import disk_use
from agent.errors import OutriderError
from agent.models.collecting import collect
from agent.models.store import ModelStore

OVER_BUDGET = 1  # exit code


def report(invocation: Invocation, *, as_json: bool) -> int:
    """Print it; return the exit code: 1 when more is there than the budget allows."""
    store = model_store(invocation)
    use = disk_use(store.data_path, store.disk_budget)
    models = [(entry.name, entry.bytes) for entry in store.list() if entry.path]
    models.sort(key=lambda model: model[1], reverse=True)
    reclaimable, reclaimable_all = _reclaimable(store, everything=False), _reclaimable(store, everything=True)
    over = bool(use.budget) and use.total > use.budget
    if as_json:
        emit_json(
            {
                "held": use.held,
                "total": use.total,
                "budget": use.budget or None,
                "free": use.free,
                "room": use.room,
                "models": [{"name": name, "bytes": count} for name, count in models],
                "reclaimable": {"gc": reclaimable, "gc_all": reclaimable_all},
            }
        )
        return OVER_BUDGET if over else 0
    table(["HELD BY", "SIZE"], [(holder, size(count)) for holder, count in use.held.items() if count])
    click.echo(f"{size(use.total)} in {store.data_path}, {size(use.free)} free")
    limit = size(use.budget) if use.budget else "none (storage.disk_budget_bytes)"
    click.echo(f"budget: {limit}, room for {size(max(0, use.room))}")
    if models:
        table(["MODEL", "SIZE"], [(name, size(count)) for name, count in models])
    if reclaimable:
        notice(f"outrider models gc frees {size(reclaimable)}")
    if reclaimable_all > reclaimable:
        notice(f"outrider models gc --all frees {size(reclaimable_all)}: interrupted calls begin anew then")
    if over:
        notice("more is there than the budget allows: nothing is pulled or made until something is removed")
    return OVER_BUDGET if over else 0


def _reclaimable(store: ModelStore, *, everything: bool) -> int:
    if not store.blobs.root.exists():
        return 0
    with contextlib.suppress(OutriderError):  # in use, or not to be written to: nothing can be said
        return collect(store, everything=everything, dry_run=True).bytes
    return 0
