"""What is told of a model: how near it is to running, and all that is known of it here."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.models.quality import Quality
from agent.types import ModelFormat


class ModelState(StrEnum):
    """How near a model is to running."""

    INSTALLED = "installed"  # verified, in the store
    CHANGED = "changed"  # in the store, altered since it was verified: hashed again at the next use
    AVAILABLE = "available"  # its package is installed: taken into the store at first use
    REFUSED = "refused"  # an adapter that cannot be served as it is, see ``remark``; looked at again at the next use
    MISSING = "missing"  # to be pulled, or its package is not installed


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it stands on this device."""

    name: str
    title: str
    format: ModelFormat
    licence: str
    state: ModelState
    bytes: int  # 0: not known before the first pull
    sha256: str  # digest of the model; "": not known before the first pull
    context_tokens: int
    parameters: int | None
    tasks: tuple[str, ...]
    source: str
    path: str | None  # in the store, when it is there
    quarantined: str | None = None  # why a copy of this model was set aside, if one was
    remark: str = ""
    parent: str | None = None  # of an adapter: its base model
    demo: bool = False  # shows that things work; not meant for real work
    quality: Quality | None = None  # as measured here, of these very bytes
    allowed: bool = False  # served by hand although below the floor
