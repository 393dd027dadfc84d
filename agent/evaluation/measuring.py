"""Measuring models of the store one after the other, each only once under the same conditions."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from agent import __version__, device
from agent.errors import OutriderError
from agent.evaluation import quality as evaluation
from agent.evaluation.asking import Tell, measure_speed
from agent.evaluation.picking import Budget, Candidate, cost_refusal
from agent.models.artifact import StoredModel
from agent.models.entry import ModelEntry
from agent.models.fitting import stored_need
from agent.models.profiles import HardwareProfile
from agent.models.quality import Golden, MeasuredSpeed, Quality, Speed
from agent.models.serving import measured
from agent.models.store import ModelStore
from agent.settings import EngineSettings
from agent.types import ModelFile, ModelFormat

MOST_SPEEDS = 8  # sets of conditions whose figures are kept with a model

NowMs = Callable[[], int]


class Measuring:
    """Measures for one profile on this device, and keeps what it found with each model."""

    def __init__(
        self,
        store: ModelStore,
        engine: EngineSettings,
        hardware: HardwareProfile,
        tell: Tell,
        *,
        now_ms: NowMs = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``engine`` are the user's settings; the profile's context and threads come on top."""
        self._store = store
        self._machine = device.profile()
        self._engine = engine_for(engine, hardware, self._machine)
        self._hardware = hardware
        self._tell = tell
        self._now_ms = now_ms

    def candidate(self, name: str, budget: Budget) -> Candidate:
        """Return all that is known of a model; what the budget rules out is not measured any further.

        Raises ModelNotFound, ModelRejected when the model's files do not hold.
        """
        file = self._store.resolve(name, below_floor=True)
        entry = self._store.show(name)
        one = Candidate(
            name=name,
            parameters=entry.parameters,
            bytes=entry.bytes,
            need=stored_need(entry, self._hardware)[0],
            demo=entry.demo,
            speed=self._kept_speed(entry),
            quality=self._kept_quality(entry),
        )
        one = msgspec.structs.replace(one, kept=one.speed is not None and one.quality is not None)
        try:
            if one.speed is None and not cost_refusal(one, budget):
                self._tell(f"{name}: how fast it is")
                one = msgspec.structs.replace(one, speed=self._speed(file))
            if one.quality is None and not cost_refusal(one, budget):
                self._tell(f"{name}: what it is worth; this takes minutes")
                one = msgspec.structs.replace(one, quality=self._quality(file))
        except OutriderError as error:
            return msgspec.structs.replace(one, fault=f"it cannot be measured: {error}")
        return one

    def speed(self, name: str) -> Speed:
        """Return how fast a model is here, measured now where it is not known. Raises OutriderError."""
        file = self._store.resolve(name, below_floor=True)
        return self._kept_speed(self._store.show(name)) or self._speed(file)

    def _kept_speed(self, entry: ModelEntry) -> Speed | None:
        stored = self._store.get(entry.name)
        for one in stored.speeds if stored else ():
            if one.digest == entry.sha256 and self._same_conditions(one):
                return one.speed
        return None

    def _same_conditions(self, one: MeasuredSpeed) -> bool:
        now = (self._machine.kind, __version__, self._engine.context_tokens, self._engine.threads)
        return now == (one.device, one.version, one.context_tokens, one.threads)

    def _kept_quality(self, entry: ModelEntry) -> Quality | None:
        stored = self._store.get(entry.name)
        found = measured(stored) if stored else None
        return found if found and found.machine == self._machine.cpu_model else None

    def _speed(self, file: ModelFile) -> Speed:
        found = MeasuredSpeed(
            digest=file.sha256,
            device=self._machine.kind,
            version=__version__,
            context_tokens=self._engine.context_tokens,
            threads=self._engine.threads,
            measured_at_ms=self._now_ms(),
            speed=measure_speed(file, self._engine, self._tell),
        )
        stored = self._store.get(file.name)
        others = [one for one in (stored.speeds if stored else ()) if not self._same_conditions(one)]
        self._store.note(file.name, speeds=(found, *others)[:MOST_SPEEDS])
        return found.speed

    def _quality(self, file: ModelFile) -> Quality:
        plan = evaluation.Plan(
            model=file,
            reference=parent_of(self._store, file.name),
            texts=(evaluation.shipped_text(),),
            engine=self._engine,
            longest_context=self._engine.context_tokens,
            golden=golden_of(self._store, file.name),
            kept=self._store.blobs.root / evaluation.KEPT_FOLDER,
        )
        found = evaluation.measure(plan, self._tell, now_ms=self._now_ms())
        self._store.note(file.name, quality=found)
        return found


def engine_for(
    engine: EngineSettings, hardware: HardwareProfile, machine: device.DeviceProfile | None = None
) -> EngineSettings:
    """Return the settings that a profile asks for, on top of the user's own."""
    changes = engine_values(hardware, machine or device.profile())
    return msgspec.structs.replace(engine, **changes) if changes else engine


def engine_values(hardware: HardwareProfile, machine: device.DeviceProfile) -> dict[str, int]:
    """Return the keys of [engine] that keep a device within its profile; none where the profile has no ceiling."""
    if hardware.memory_mib is None:
        return {}
    return {
        "context_tokens": hardware.context_tokens,
        "parallel": hardware.parallel,
        "threads": min(hardware.threads or machine.decode_threads, machine.logical_cores),
        "memory_mib": hardware.memory_mib,
    }


def golden_of(store: ModelStore, name: str) -> Golden | None:
    """Return what the source of a model said where it was measured before, if that is known."""
    stored = store.get(name)
    found = measured(stored) if stored else None
    return found.golden if found else None


def parent_of(store: ModelStore, name: str) -> ModelFile | None:
    """Return the model that another one was made from, if the store still has these very bytes.

    For one made from a checkpoint, which no runtime reads, that is the model that was converted
    from the same checkpoint without loss.
    """
    stored = store.get(name)
    making = stored.making if stored else None
    if making is None:
        return None
    parent = store.get(making.parent)
    if parent is None or parent.digest != making.parent_digest or parent.format is ModelFormat.CHECKPOINT:
        parent = _without_loss(store, making.parent_digest, but=name)
    return store.resolve(parent.name, below_floor=True) if parent else None


def _without_loss(store: ModelStore, checkpoint: str, *, but: str) -> StoredModel | None:
    for name in store.names():
        found = store.get(name) if name != but else None
        if found and found.making and (found.making.recipe, found.making.parent_digest) == ("checkpoint", checkpoint):
            return found
    return None
