"""``outrider budget``: how far what targets may cost is used up."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, moment, notice, table


@click.command()
@json_option
@pass_invocation
def budget(invocation: Invocation, as_json: bool) -> None:
    """See how far what targets may cost is used up.

    What sends under way may cost at most is counted until they have ended. Days and months are
    those of UTC; rows that do not fit wait for the next one.

    Example:  outrider budget
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        found = access.standings()
    if as_json:
        emit_json(found)
        return
    if not found:
        notice("no budget: targets may cost what they like; set [[budgets]] in outrider.toml")
        return
    table(
        ["BUDGET", "COVERS", "PERIOD", "SPENT", "CEILING", "UNTIL"],
        [
            (
                one["budget"],
                ", ".join(f"{name} {one[name]}" for name in ("target", "task") if one[name]) or "all",
                one["period"],
                _amount(one, "spent"),
                _amount(one, "ceiling"),
                moment(one["until_ms"]),
            )
            for one in found
        ],
    )


def _amount(standing: dict[str, Any], name: str) -> str:
    from agent.escalation.prices import written

    amount = Decimal(standing[name])
    return written(amount) if standing["unit"] == "dollars" else f"{amount:,f} tokens"
