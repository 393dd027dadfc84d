"""What an operator sees of the worker of one model."""

from __future__ import annotations

from enum import StrEnum

import msgspec
import psutil

from agent.compute import DeviceUse
from agent.encoder import EncoderTask


class WorkerState(StrEnum):
    """Life of the worker of one model."""

    STARTING = "starting"
    READY = "ready"
    IDLE = "idle"  # not in memory; comes back with the next request
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"


class EncoderTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded encoder gives."""

    task: EncoderTask
    width: int  # numbers of a row: of a vector, or one a label
    labels: tuple[str, ...] = ()
    several: bool = False  # whether more than one label may fit
    most_tokens: int  # of one input, with its marks
    dimensions: tuple[int, ...] = ()  # shorter vectors that it was trained for


class ModelTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model is and can do, by its file."""

    parameters: int
    quantization: str  # of the file: "Q4_1"
    fills_gaps: bool  # has tokens for a text with a gap
    thinks: bool  # before it answers, between marks that are known
    encoder: EncoderTraits | None = None  # of a model that does not write
    held_as: str = ""  # the form of the weights in memory, where it is not the file's
    absent: tuple[str, ...] = ()  # what this runtime does not have of what others do, or of the settings


class ThreadChoice(msgspec.Struct, frozen=True):
    """How many threads the engine works with, and why."""

    decode: int  # steps of one token for every request
    prefill: int  # steps with pieces of prompts
    reason: str


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator sees of one model's worker."""

    state: WorkerState
    pid: int | None = None
    model_digest: str = ""
    runtime: str = ""
    context_tokens: int = 0  # of one request, as far as memory allows; 0 until the model is loaded
    kv_tokens: int = 0  # of all requests and cached beginnings together
    traits: ModelTraits | None = None  # once it was loaded
    confinement: tuple[str, ...] = ()
    crashes: int = 0  # since the daemon started
    last_error: str = ""  # reason and tail of stderr
    active: int = 0
    waiting: int = 0
    rss_bytes: int | None = None
    threads: ThreadChoice | None = None  # None until the first step
    device: DeviceUse | None = None  # of a runtime that has a choice, once the model was loaded


def rss_bytes(pid: int | None) -> int | None:
    """Return the resident memory of a worker, None when it has none."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
