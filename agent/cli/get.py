"""``outrider get``: from nothing to a measured default model in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import confirm, emit_json, notice, printable, size
from agent.cli.picking import NOTHING_FITS, measure_and_choose, require_answers, take, tell, tell_default, tell_settings
from agent.cli.recommending import budget, budget_options, show
from agent.errors import InvalidRequest, ModelNotFound, SourceUnreachable

if TYPE_CHECKING:
    from pathlib import Path

    from agent.models.artifact import StoredModel
    from agent.models.fitting import Room
    from agent.models.getting import Begun
    from agent.models.manifest import Profile
    from agent.models.profiles import HardwareProfile
    from agent.models.pulling import Offer
    from agent.models.store import ModelStore

QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 64
PATIENCE_S = 300.0  # for the first answer of a running daemon
SHOWN = 6  # recommendations
BEGUN_NAME = "get.json"


@click.command()
@click.argument("model", required=False)
@budget_options
@click.option("--offline", is_flag=True, help="Open no connection: choose among what is on this device.")
@click.option("--yes", is_flag=True, help="Do not ask. A licence that must be accepted needs --accept-licence too.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence where the model's owner asks for it.")
@click.option("--force", is_flag=True, help="Also above 3.5 billion weights, or measured below the floor.")
@json_option
@pass_invocation
def get(
    invocation: Invocation,
    model: str | None,
    profile: Profile | None,
    memory_mib: int | None,
    offline: bool,
    yes: bool,
    accept_licence: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Get a model that is good enough on this very device, and make it the default.

    Without MODEL it takes what `outrider models recommend` puts first. It is pulled, made smaller where
    the profile has a recipe for it, measured, made the default and asked a first question. A call that
    was stopped goes on where it was when it is given again. Exit code 65: it was measured and is not
    good enough; the default stays as it was.

    Example:  outrider get
    """
    from agent.models.getting import Begun

    store = model_store(invocation)
    path = store.blobs.root / BEGUN_NAME
    begun = Begun.read(path)
    if begun and model in {None, begun.given, begun.model} and profile in {None, begun.profile}:
        notice(f"going on with {begun.model} for {begun.profile}")
        yes = True  # it was agreed to
    else:
        hardware, room = budget(profile, memory_mib)
        require_answers(hardware)
        chosen = model or _recommended(invocation, store, hardware, room, offline=offline, quiet=as_json)
        begun = Begun(given=chosen, model=chosen, profile=hardware.name, memory_mib=memory_mib)
    hardware, room = budget(begun.profile, memory_mib or begun.memory_mib)
    getting = _Getting(
        invocation, store, hardware, path, yes=yes, accept_licence=accept_licence, force=force, as_json=as_json
    )
    try:
        source = getting.pulled(begun, offline=offline)
    except ModelNotFound:
        Begun.forget(path)  # the next call begins anew
        raise
    except SourceUnreachable as error:
        if model:
            raise
        notice(f"outrider: {error}")
        here = _recommended(invocation, store, hardware, room, offline=True, quiet=as_json)
        source = getting.pulled(
            Begun(given=here, model=here, profile=hardware.name, memory_mib=memory_mib), offline=True
        )
    return getting.end(source, getting.made_smaller(source), room)


def _recommended(
    invocation: Invocation, store: ModelStore, hardware: HardwareProfile, room: Room, *, offline: bool, quiet: bool
) -> str:
    """Return the model that this device should have. Raises InvalidRequest when nothing fits."""
    from agent import device
    from agent.evaluation.measuring import Measuring
    from agent.models.recommending import recommend

    found = recommend(store, hardware, room, device.profile(), here_only=offline)
    demo = next((one for one in found if one.demo and one.fits), None)
    if demo and demo.tokens_per_second is None:
        notice("measuring how fast this device is")
        Measuring(store, invocation.settings.engine, hardware, notice).speed(demo.name)
        found = recommend(store, hardware, room, device.profile(), here_only=offline)
    if not quiet:
        show(found[:SHOWN])
    best = next((one for one in found if one.recommended), None)
    if best is None and demo:
        notice("only the demo model is on this device and fits it")
        best = demo
    if best is None:
        nearest = found[0].why if found else "the store is empty and no connection is allowed"
        raise InvalidRequest(f"no model fits this device: {nearest}; free memory, or give --memory", param="model")
    return best.name


class _Getting:
    """The steps of one call; each is done again at no cost when it was done before."""

    def __init__(
        self,
        invocation: Invocation,
        store: ModelStore,
        hardware: HardwareProfile,
        begun_path: Path,
        *,
        yes: bool,
        accept_licence: bool,
        force: bool,
        as_json: bool,
    ) -> None:
        self._invocation = invocation
        self._store = store
        self._hardware = hardware
        self._path = begun_path
        self._yes = yes
        self._accept_licence = accept_licence
        self._force = force
        self._as_json = as_json

    def pulled(self, begun: Begun, *, offline: bool) -> StoredModel:
        """Return the model as it is in the store, after the one question. Raises what a pull raises."""
        from agent.cli.pull import Bar
        from agent.models.entry import ModelState
        from agent.models.pulling import Wish, pull

        known = begun.model in self._store.names()
        if known and "chat" not in self._store.show(begun.model).tasks:
            raise InvalidRequest(
                f"{begun.model} answers no questions, so it cannot be the default; outrider pull {begun.model} gets it",
                param="model",
            )
        there = self._store.get(begun.model) if known else None
        if there and self._store.show(begun.model).state is not ModelState.MISSING:
            self._agree(begun, there.name, there.bytes, there.licence)
            self._store.resolve(there.name, below_floor=True)
            return there

        def ask(offer: Offer) -> None:
            where = f" ({offer.licence_url})" if offer.licence_url else ""
            if offer.must_accept and not self._accept_licence:
                confirm(f"Do you accept the licence {offer.licence}{where}?", unattended="--accept-licence")
            self._agree(begun, f"{offer.name} from {offer.source}", offer.bytes, offer.licence)

        entry = self._store.show(begun.model) if known else None
        if entry and entry.state is ModelState.AVAILABLE:  # in a package: no pull asks
            self._agree(begun, entry.name, entry.bytes, entry.licence)
        wish = Wish(given=begun.model, offline=offline, force=self._force)
        with Bar(hidden=self._as_json) as bar:
            source = pull(self._store, self._invocation.settings.pull, wish, ask, bar).model
        # By its name in the store: the file or stick that it came from may be gone when the call goes on.
        msgspec.structs.replace(begun, model=source.name).write(self._path)
        return source

    def _agree(self, begun: Begun, what: str, count: int | None, licence: str) -> None:
        notice(f"{what}: {'size not told' if count is None else size(count)}, licence {licence}")
        if not self._yes:
            also = ", write its budget into outrider.toml" if self._hardware.memory_mib else ""
            confirm(f"Get it, measure it for the profile {self._hardware.name}{also} and make it the default?")
        begun.write(self._path)

    def made_smaller(self, source: StoredModel) -> StoredModel:
        """Return the form of the model that suits the profile; the model itself where there is none better."""
        from agent import device
        from agent.cli.quantize import Bar
        from agent.models.converting import quantize_any
        from agent.models.getting import smaller_recipe
        from agent.models.quantizing import Wish

        recipe = smaller_recipe(self._store, source, self._hardware)
        if recipe is None:
            notice(f"{source.name} stays as it is: {self._hardware.name} has no recipe that would help")
            return source
        wish = Wish(
            source=source.name,
            recipe=recipe,
            target=self._hardware.name,
            force=self._force,
            threads=device.profile().decode_threads,
        )
        notice(f"making it smaller: {recipe}")
        with Bar(hidden=self._as_json) as bar:
            return quantize_any(self._store, self._invocation.data_path, wish, bar).model

    def end(self, source: StoredModel, made: StoredModel, room: Room) -> int:
        """Measure, make the better one the default and ask it a question; return the exit code."""
        from agent.evaluation.picking import Budget
        from agent.models.getting import Begun
        from agent.types import ModelFormat

        limits = Budget(room=room, below_floor=self._force)
        choice = measure_and_choose(self._invocation, self._store, [made.name], self._hardware, limits)
        if choice.picked is None and source.name != made.name and source.format is not ModelFormat.CHECKPOINT:
            notice(f"{made.name} is not good enough; {source.name} as it came is measured")
            names = [made.name, source.name]
            choice = measure_and_choose(self._invocation, self._store, names, self._hardware, limits)
        if not self._as_json:
            tell(choice)
        if choice.picked is None:
            notice("the default stays as it was")
            if self._as_json:
                emit_json({"choice": choice, "answer": None})
            Begun.forget(self._path)
            return NOTHING_FITS
        before = take(self._invocation, self._store, choice, force=self._force)
        tell_default(choice.picked, before)
        tell_settings(self._invocation, self._hardware, write=True)
        answer = self._first_answer(choice.picked)
        Begun.forget(self._path)
        if self._as_json:
            emit_json({"choice": choice, "answer": answer})
            return 0
        click.echo(printable(answer))
        notice("outrider serve starts the daemon; outrider ask QUESTION asks it")
        return 0

    def _first_answer(self, name: str) -> str:
        from agent.cli.ask import text_of
        from agent.cli.client import DaemonClient, find_daemon
        from agent.evaluation.asking import ask_once
        from agent.evaluation.measuring import engine_for

        settings = self._invocation.settings
        notice(f"first question: {QUESTION}")
        if find_daemon(settings.data_path):
            body = {
                "model": "default",
                "messages": [{"role": "user", "content": QUESTION}],
                "max_completion_tokens": ANSWER_TOKENS,
                "outrider": {"route_mode": "local_only"},
            }
            with DaemonClient(settings) as client:
                return text_of(client.answer(body, PATIENCE_S))
        engine = engine_for(settings.engine, self._hardware)
        return ask_once(self._store.resolve(name), engine, QUESTION, ANSWER_TOKENS, notice)
