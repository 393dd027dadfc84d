"""``outrider tune``: what this device would choose for this model, measured, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, table

if TYPE_CHECKING:
    from agent.cli.engine_tuning import Tuning

QUICK_ROUNDS, FULL_ROUNDS = 3, 9
QUICK_STRETCH_S, FULL_STRETCH_S = 0.5, 1.0


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds.")
@click.option("--busy", is_flag=True, help="Measure again beside one spinning process a core.")
@click.option("--model", help="Model to measure; the default is engine.model.")
@click.option("--write", is_flag=True, help="Write a fixed number of threads where it beats the adaptive choice.")
@json_option
@pass_invocation
def tune(invocation: Invocation, quick: bool, busy: bool, model: str | None, write: bool, as_json: bool) -> None:
    """Measure threads and cache types on this device and say what suits it.

    Loads the model in a process of its own and runs answers and prompts with 1, 2, ... threads
    and with the adaptive choice in turn, then with each type of the cache. Other programs should
    rest meanwhile.

    Example:  outrider tune --quick
    """
    from agent.cli.config_file import set_config_value
    from agent.cli.engine_tuning import measure_tuning
    from agent.models.store import open_store

    engine = invocation.settings.engine
    file = open_store(invocation.data_path).resolve(model or engine.model)
    rounds, stretch_s = (QUICK_ROUNDS, QUICK_STRETCH_S) if quick else (FULL_ROUNDS, FULL_STRETCH_S)
    tuning = measure_tuning(file, engine, rounds=rounds, stretch_s=stretch_s, busy=busy, tell=notice)
    if as_json:
        emit_json(tuning)
    else:
        _print(tuning)
    if not write:
        return
    if tuning.threads:
        set_config_value(invocation.loaded.path, "engine", "threads", tuning.threads)
        notice(
            f"engine.threads = {tuning.threads} is written to {invocation.loaded.path}; it holds from the next start"
        )
    else:
        notice("nothing is written: no fixed number of threads beats the adaptive choice")


def _print(tuning: Tuning) -> None:
    table(
        ["STEPS", "MACHINE", "CACHE", "THREADS", "TOKENS/S", "TO BEST FIXED"],
        [
            (one.kind, one.load, one.kv_type, one.threads or "adaptive", f"{one.rate:.1f}", f"{one.ratio:.3f}")
            for one in tuning.measured
        ],
    )
    click.echo("")
    table(["SETTING", "VALUE", "WHY"], [(one.setting, one.value, one.why) for one in tuning.advice])
