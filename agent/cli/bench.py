"""``outrider bench``: what the daemon costs, side by side with its worker driven directly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, table

if TYPE_CHECKING:
    from agent.cli.side_by_side import Row

QUICK_ROUNDS, FULL_ROUNDS = 5, 15
QUICK_BUDGET_S, FULL_BUDGET_S = 35.0, 600.0


@click.command()
@click.option("--quick", is_flag=True, help="Fewer rounds; under 50 seconds.")
@click.option("--tokens", type=click.IntRange(8, 2048), default=128, show_default=True, help="Length of one answer.")
@click.option("--model", help="Model to measure; the default is engine.model.")
@json_option
@pass_invocation
def bench(invocation: Invocation, quick: bool, tokens: int, model: str | None, as_json: bool) -> None:
    """Measure what the daemon costs against its worker driven directly.

    Starts a daemon of its own in a temporary folder and, beside it, the same worker without one;
    both answer the same prompts in turn, and the medians are compared. The numbers hold for this
    machine and its present load.

    Example:  outrider bench --quick
    """
    from agent.cli.side_by_side import Plan, measure

    plan = Plan(
        model=model or invocation.settings.engine.model,
        tokens=tokens,
        rounds=QUICK_ROUNDS if quick else FULL_ROUNDS,
        budget_s=QUICK_BUDGET_S if quick else FULL_BUDGET_S,
    )
    rows = measure(invocation.settings.engine, plan, notice)
    if as_json:
        emit_json(rows)
        return
    table(["WHAT", "THROUGH THE DAEMON", "DIRECT", "RATIO", "WANTED", "OK"], map(_cells, rows))


def _cells(row: Row) -> tuple[object, ...]:
    ok = None if row.ok is None else ("yes" if row.ok else "NO")
    return (row.name, _number(row.ours), _number(row.peer), _number(row.ratio, 3), row.wanted, ok)


def _number(value: float | None, places: int = 1) -> str | None:
    return None if value is None else f"{value:.{places}f}"
