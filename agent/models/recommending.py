"""Which model a device should have: every one of catalogue and store, in order, each with the reason."""

from __future__ import annotations

import msgspec

from agent import device
from agent.errors import OutriderError
from agent.models.entry import ModelEntry, ModelState
from agent.models.fitting import MIB, Need, Room, catalogue_need, made_need, stored_need, weight_type
from agent.models.profiles import HardwareProfile
from agent.models.store import ModelStore
from agent.types import ModelFormat

_LAST = 99


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """One model, and whether this device should have it."""

    name: str
    title: str
    state: ModelState
    format: ModelFormat
    licence: str
    parameters: int | None
    weights: str  # how most of them are written; empty where nothing says it
    recipe: str  # that `get` makes it smaller with first, which `need` is of; empty: none
    bytes: int  # of its files; 0: not known before the first pull
    need: Need | None  # None: nothing is known of its size
    tokens_per_second: float | None  # reckoned from a model that was measured here; None: none was
    demo: bool
    fits: bool
    recommended: bool = False  # one at most
    why: str


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    entry: ModelEntry
    need: Need | None
    kind: str
    recipe: str
    tokens_per_second: float | None


def recommend(
    store: ModelStore, profile: HardwareProfile, room: Room, machine: device.DeviceProfile, *, here_only: bool = False
) -> tuple[Recommendation, ...]:
    """Return every model, what should be taken first. Reads headers of files, no weights.

    Of those that fit and are fast enough the one with most weights comes first: it most likely answers
    best. What it is worth here, only a measurement tells. ``here_only`` leaves out what has to be pulled.
    """
    bytes_per_second = _bandwidth(store, machine)
    found = []
    for entry in store.list():
        if entry.state is ModelState.MISSING and here_only:
            continue
        try:
            seen = _look(store, entry, profile, bytes_per_second)
        except OutriderError as error:  # one bad file hides no other model
            found.append(
                (_LAST, _told(_Seen(entry=entry, need=None, kind="", recipe="", tokens_per_second=None), str(error)))
            )
            continue
        rank, why = _judge(seen, profile, room)
        found.append((rank, _told(seen, why, fits=rank < 3)))
    found.sort(key=lambda one: (one[0], *_order(one[1], profile)))
    told = [one for _, one in found]
    if found and found[0][0] == 0:
        told[0] = msgspec.structs.replace(told[0], recommended=True)
    return tuple(told)


def _look(store: ModelStore, entry: ModelEntry, profile: HardwareProfile, bytes_per_second: float | None) -> _Seen:
    spec = store.manifest.find(entry.name)
    if entry.path and entry.format is not ModelFormat.CHECKPOINT:
        need: Need | None
        need, kind = stored_need(entry, profile)
    else:
        need = catalogue_need(spec, profile) if spec else None
        kind = weight_type(spec.files[0].name) if spec else ""
    recipe = spec.recipes.get(profile.name, "") if spec else ""
    if spec and recipe and (made := made_need(spec, recipe, profile)) and made[1] != kind:
        need = made[0]
    else:
        recipe = ""
    writes = "chat" in profile.tasks  # an encoder reads a whole text with one look at its weights
    speed = bytes_per_second / need.weights if need and bytes_per_second and writes else None
    return _Seen(entry=entry, need=need, kind=kind, recipe=recipe, tokens_per_second=speed)


def _judge(seen: _Seen, profile: HardwareProfile, room: Room) -> tuple[int, str]:
    """Return how far down the list it comes, and why."""
    entry, need = seen.entry, seen.need
    if not profile.tasks & {*entry.tasks}:
        return 5, f"it is for: {', '.join(entry.tasks)}; the profile {profile.name} wants {_wanted(profile)}"
    if entry.format is ModelFormat.CHECKPOINT:
        return 5, f"a checkpoint cannot be served: it is a source for outrider quantize {entry.name}"
    if entry.format not in profile.formats:
        return 5, f"{entry.format} does not run on the hardware of the profile {profile.name}"
    if need is None:
        return 4, "how large it is is not known before the first pull"
    made = f"made smaller ({seen.recipe}) it " if seen.recipe else ""
    needed = f"{made}needs {'' if need.exact else 'about '}{need.total // MIB}"
    context = f"with {need.context_tokens} tokens of context"
    if need.total > room.bytes:
        return 3, f"{needed} MiB {context}; {room.bytes // MIB} MiB are {room.why}"
    figures = f"{needed} of {room.bytes // MIB} MiB {context}"
    pace = ""
    if seen.tokens_per_second is not None:
        pace = f", about {seen.tokens_per_second:.0f} tokens a second here"
        if seen.tokens_per_second < profile.least_tokens_per_second:
            return 2, f"{figures}{pace}: too slow, {profile.least_tokens_per_second:.0f} are wanted"
    if entry.quality and entry.quality.faults:
        return 2, f"below the floor as measured here: {entry.quality.faults[0]}"
    if entry.demo:
        return 1, f"{figures}{pace}; the demo model: it shows that things work, and is weak at facts"
    absent = f"; get it with: outrider get {entry.name}" if entry.state is ModelState.MISSING else ""
    return 0, f"{figures}{pace}{absent}"


def _wanted(profile: HardwareProfile) -> str:
    return " or ".join(sorted(profile.tasks))


def _order(one: Recommendation, profile: HardwareProfile) -> tuple[float, ...]:
    """Most weights first; of the same model what is written as suits this hardware; what is here before the rest."""
    place = profile.types.index(one.weights) if one.weights in profile.types else len(profile.types)
    size = -(one.parameters or 0) if one.fits else (one.need.total if one.need else 0)
    return size, place, one.state is ModelState.MISSING


def _told(seen: _Seen, why: str, *, fits: bool = False) -> Recommendation:
    entry = seen.entry
    return Recommendation(
        name=entry.name,
        title=entry.title,
        state=entry.state,
        format=entry.format,
        licence=entry.licence,
        parameters=entry.parameters,
        weights=seen.kind,
        recipe=seen.recipe,
        bytes=entry.bytes,
        need=seen.need,
        tokens_per_second=seen.tokens_per_second,
        demo=entry.demo,
        fits=fits,
        why=why,
    )


def _bandwidth(store: ModelStore, machine: device.DeviceProfile) -> float | None:
    """Return weights read a second, bytes, by the largest model that was measured here: every token reads all once."""
    measured: list[tuple[int, float]] = []
    for entry in store.list():
        stored = store.get(entry.name) if entry.path else None
        measured += [
            (entry.bytes, one.speed.tokens_per_second)
            for one in (stored.speeds if stored else ())
            if one.digest == entry.sha256 and one.device == machine.kind
        ]
        if entry.quality and entry.quality.machine == machine.cpu_model:
            measured.append((entry.bytes, entry.quality.speed.tokens_per_second))
    size, rate = max(measured, default=(0, 0.0))
    return size * rate or None
