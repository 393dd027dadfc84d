"""``outrider models pick``: measure the models of the store on this device and take the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import emit_json, notice, size, table
from agent.cli.recommending import budget, budget_options
from agent.errors import InvalidRequest

if TYPE_CHECKING:
    from agent.evaluation.picking import Budget, Choice, Verdict
    from agent.models.fitting import Room
    from agent.models.manifest import Profile
    from agent.models.profiles import HardwareProfile
    from agent.models.recommending import Recommendation
    from agent.models.store import ModelStore

NOTHING_FITS = 65  # exit code: measured, and refused


@click.command()
@budget_options
@click.option(
    "--first-token",
    "first_token_ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Longest wait for the first token after a prompt of about 256 tokens.",
)
@click.option(
    "--min-quality",
    "least_followed",
    type=click.FloatRange(0, 1),
    help="Least share of the 20 direct instructions that it follows. Default: the floor, 0.5.",
)
@click.option("--candidates", metavar="NAME,NAME", help="Only these. Default: all of the store that fit.")
@click.option("--force", is_flag=True, help="Take also what was measured below the floor; it is served then.")
@click.option("--write", is_flag=True, help="Write the profile's context, threads and ceiling into outrider.toml.")
@json_option
@pass_invocation
def pick(
    invocation: Invocation,
    profile: Profile | None,
    memory_mib: int | None,
    first_token_ms: float | None,
    least_followed: float | None,
    candidates: str | None,
    force: bool,
    write: bool,
    as_json: bool,
) -> int:
    """Measure the models that are here and make the best within the budget the default.

    Speed, first token and memory are measured under the profile, quality as `outrider measure` does:
    minutes for each model. What was measured under the same conditions is not measured again, so a
    call that was stopped goes on where it was. Exit code 65: no model is within the budget.

    Example:  outrider models pick --memory 1500 --first-token 800
    """
    hardware, room = budget(profile, memory_mib)
    require_answers(hardware)
    limits = _limits(room, first_token_ms, least_followed, force=force)
    store = model_store(invocation)
    names = [name.strip() for name in candidates.split(",") if name.strip()] if candidates else stored_names(store)
    choice = measure_and_choose(invocation, store, names, hardware, limits)
    if choice.picked:
        before = take(invocation, store, choice, force=force)
    if as_json:
        emit_json(choice)
    else:
        tell(choice)
        if choice.picked:
            tell_default(choice.picked, before)
        if not choice.next_better and (larger := _larger_elsewhere(store, choice, hardware, room)):
            notice(f"next better: {larger}")
        tell_settings(invocation, hardware, write=write)
    return 0 if choice.picked else NOTHING_FITS


def require_answers(hardware: HardwareProfile) -> None:
    """Refuse a profile whose models answer no questions: nothing could be the default. Raises InvalidRequest."""
    if "chat" not in hardware.tasks:
        raise InvalidRequest(
            f"models for the profile {hardware.name} answer no questions, so none can be the default; "
            f"outrider models recommend --profile {hardware.name} lists them",
            param="profile",
        )


def stored_names(store: ModelStore) -> list[str]:
    """Return the names of all models that could answer and need no pull."""
    return [entry.name for entry in store.served() if "chat" in entry.tasks]


def _limits(room: Room, first_token_ms: float | None, least_followed: float | None, *, force: bool) -> Budget:
    from agent.evaluation.picking import Budget
    from agent.models.quality import LEAST_INSTRUCTIONS

    least = LEAST_INSTRUCTIONS if least_followed is None else least_followed
    return Budget(room=room, first_token_ms=first_token_ms, least_followed=least, below_floor=force)


def measure_and_choose(
    invocation: Invocation, store: ModelStore, names: list[str], hardware: HardwareProfile, limits: Budget
) -> Choice:
    """Measure what is not known yet of these models, and choose. Raises ModelNotFound, ModelRejected."""
    from agent.evaluation.measuring import Measuring
    from agent.evaluation.picking import choose

    measuring = Measuring(store, invocation.settings.engine, hardware, notice)
    return choose([measuring.candidate(name, limits) for name in names], limits)


def take(invocation: Invocation, store: ModelStore, choice: Choice, *, force: bool) -> str | None:
    """Make the picked model the default and return what was; with ``force`` one below the floor is allowed to be served first."""
    from agent.cli.promotion import put_in_place

    assert choice.picked is not None
    entry = store.show(choice.picked)
    if force and entry.quality and entry.quality.faults and not entry.demo:
        store.note(choice.picked, allowed=True)
    before: str | None = put_in_place(invocation, choice.picked, "default")["before"]
    return before


def tell_default(picked: str, before: str | None) -> None:
    """Say what the default is now."""
    back = f", before: {before}; back to it: outrider models rollback" if before and before != picked else ", as before"
    notice(f"default is {picked}{back}")


def tell(choice: Choice) -> None:
    """Print what was measured and what follows."""
    table(
        ["", "NAME", "SIZE", "MEMORY", "TOKENS/S", "FIRST TOKEN", "INSTRUCTIONS", "BITS/BYTE", "CONTEXT", "VERDICT"],
        [_row(verdict, choice.picked) for verdict in choice.verdicts],
    )
    notice(choice.why)
    if choice.next_better:
        notice(f"next better: {choice.next_better}")


def _row(verdict: Verdict, picked: str | None) -> tuple[object, ...]:
    one = verdict.candidate
    speed, quality = one.speed, one.quality
    useful = quality.useful_context_tokens if quality else None
    said = verdict.refusal.reason if verdict.refusal else "within the budget"
    return (
        "->" if one.name == picked else "",
        f"{one.name} (demo model)" if one.demo else one.name,
        size(one.bytes),
        size(speed.memory_bytes) if speed else None,
        f"{speed.tokens_per_second:.1f}" if speed else None,
        f"{speed.first_token_ms:.0f} ms" if speed else None,
        f"{quality.instructions_followed} of {quality.instructions_asked}" if quality else None,
        f"{one.bits_per_byte:.3f}" if quality and quality.texts else None,
        useful or one.need.context_tokens,
        f"{said}; measured before" if one.kept else said,
    )


def _larger_elsewhere(store: ModelStore, choice: Choice, hardware: HardwareProfile, room: Room) -> str:
    """Say which model that is not here has more weights and fits, or is nearest to fitting."""
    from agent import device
    from agent.models.recommending import recommend

    picked = next((one.candidate.parameters or 0 for one in choice.verdicts if one.candidate.name == choice.picked), 0)
    larger = [
        one
        for one in recommend(store, hardware, room, device.profile())
        if one.state == "missing" and one.need and "chat" in store.show(one.name).tasks
        and (one.parameters or 0) > picked
    ]  # fmt: skip
    nearest = min(larger, key=_cost, default=None)
    if nearest is None or nearest.need is None:
        return ""
    if nearest.fits:
        return f"{nearest.name} has more weights and fits; get and measure it with: outrider get {nearest.name}"
    return f"{nearest.name} has more weights and {nearest.why}"


def _cost(one: Recommendation) -> tuple[bool, int]:
    return not one.fits, one.need.total if one.need else 0


def tell_settings(invocation: Invocation, hardware: HardwareProfile, *, write: bool) -> None:
    """Say which settings keep the daemon within the profile, or write them. Raises ConfigError."""
    from agent import device
    from agent.cli.config_file import set_config_value
    from agent.evaluation.measuring import engine_values

    values = engine_values(hardware, device.profile())
    if not values:
        return
    said = ", ".join(f"{key} = {value}" for key, value in values.items())
    if not write:
        notice(f"to keep the daemon within the profile {hardware.name}, set in [engine]: {said} (or say --write)")
        return
    path = invocation.loaded.path
    for key, value in values.items():
        set_config_value(path, "engine", key, value)
    notice(f"written to {path}, [engine]: {said}; it holds from the next start")
