"""What a model takes in memory, before it is loaded: files, keys and values of one context, and the program itself."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent import device
from agent.models.entry import ModelEntry
from agent.models.gguf_check import check_gguf
from agent.models.manifest import ModelSpec
from agent.models.profiles import HardwareProfile
from agent.models.quantizing import cache_bytes
from agent.models.recipes.tensor_types import TARGETS, precision
from agent.types import ModelFormat

MIB = 1 << 20
PROGRAM_BYTES = 128 * MIB  # of a worker without weights and cache: Python, llama.cpp, its buffers
FREE_SHARE = 0.8  # of the memory that is free; other programs need some, too
CACHE_GUESS = 0.2  # of the weights, where no header tells what keys and values take
# `precision` names the type of most tensors; the catalogue has the name of the whole mixture.
_MIXTURES = {"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q3_K_M": "Q3_K"}
_BITS = {_MIXTURES.get(target.name, target.name): target.bits for target in TARGETS.values()}
_TYPE = re.compile(r"(?<![a-z0-9])(i?q\d_(?:k_[ms]|k|xs|nl|\d)|bf16|f16|f32)(?![a-z0-9])", re.IGNORECASE)


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a model takes while it answers."""

    weights: int
    cache: int  # of one request with ``context_tokens``
    context_tokens: int
    exact: bool  # read from a file or the manifest; else reckoned from the number of weights

    @property
    def total(self) -> int:
        return self.weights + self.cache + PROGRAM_BYTES


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a model may take."""

    bytes: int
    why: str  # for people: "the ceiling of the profile phone"


def room_of(profile: HardwareProfile, memory_mib: int | None, seen: device.DeviceProfile) -> Room:
    """Return the least of what was asked for, the ceiling of the profile, and what the device has."""
    free = Room(bytes=int(seen.memory_usable * FREE_SHARE), why=f"{FREE_SHARE:.0%} of the memory that is free")
    rooms = [free]
    if profile.memory_mib:
        rooms.append(Room(bytes=profile.memory_mib * MIB, why=f"the ceiling of the profile {profile.name}"))
    if memory_mib:
        rooms.append(Room(bytes=memory_mib * MIB, why="what --memory allows"))
    return min(rooms, key=lambda room: room.bytes)


def stored_need(entry: ModelEntry, profile: HardwareProfile) -> tuple[Need, str]:
    """Return what a model of the store takes and how most of its weights are written, by its files.

    Raises ModelRejected.
    """
    context = min(profile.context_tokens, entry.context_tokens)
    if entry.format is ModelFormat.GGUF and entry.path:
        header = check_gguf(Path(entry.path))
        cache = cache_bytes(header, context)
        return Need(weights=entry.bytes, cache=cache, context_tokens=context, exact=True), precision(header).name
    kind = next((kind for kind in ("int4", "int8") if kind in f"{entry.title} {entry.name}".lower()), "")
    cache = int(entry.bytes * CACHE_GUESS)
    return Need(weights=entry.bytes, cache=cache, context_tokens=context, exact=False), kind


def catalogue_need(spec: ModelSpec, profile: HardwareProfile) -> Need | None:
    """Return what a model takes by its entry in the manifest; None where that tells nothing."""
    context = min(profile.context_tokens, spec.context_tokens)
    weights = sum(file.bytes or 0 for file in spec.files)
    if told := spec.memory_mib.get(profile.name):  # weights and cache together
        return Need(weights=told * MIB, cache=0, context_tokens=context, exact=True)
    if not weights:
        bits = _BITS.get(weight_type(spec.files[0].name))
        if not (bits and spec.parameters):
            return None
        weights = int(spec.parameters * bits * _larger(bits, spec.parameters) / 8)
    return Need(weights=weights, cache=int(weights * CACHE_GUESS), context_tokens=context, exact=False)


def made_need(spec: ModelSpec, recipe: str, profile: HardwareProfile) -> tuple[Need, str] | None:
    """Return what a model takes once a recipe has made it smaller, and how its weights are written then.

    None for a recipe or a model of which that is not known beforehand.
    """
    target = TARGETS.get(recipe)
    if target is None or spec.parameters is None:
        return None
    weights = int(spec.parameters * target.bits * _larger(target.bits, spec.parameters) / 8)
    context = min(profile.context_tokens, spec.context_tokens)
    need = Need(weights=weights, cache=int(weights * CACHE_GUESS), context_tokens=context, exact=False)
    return need, _MIXTURES.get(target.name, target.name)


def weight_type(file_name: str) -> str:
    """Return how most weights of a GGUF file are written, by its name; empty where that does not say."""
    found = _TYPE.search(file_name)
    name = found.group(1).upper() if found else ""
    return _MIXTURES.get(name, name)


def _larger(bits: float, parameters: int) -> float:
    """Return how much larger a file is than its type says: embeddings and output stay at 6 to 8 bits."""
    if bits > 8:
        return 1.05
    return 1.3 if parameters >= 1_000_000_000 else 1.75
