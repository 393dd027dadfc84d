"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from starlette.requests import Request

from agent.api.auth import CallerKey, Role, Tokens
from agent.background import Background
from agent.engine.supervisor import EnginePool
from agent.errors import Forbidden
from agent.escalation.dispatcher import Dispatcher
from agent.models.aliases import Aliases
from agent.pipeline import Pipeline
from agent.settings import Settings, TargetSettings
from agent.storage import Storage
from agent.storage.prefix_store import PrefixStore
from agent.task_memory import TaskMemory
from agent.text_settings import RedactionSettings

HEARTBEAT_S = 10.0
ROLE = "outrider.role"  # in the ASGI scope
KEY = "outrider.key"  # likewise: the caller's own key, or None


class ModelCard(Protocol):
    """A model that can be asked for by name."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def context_tokens(self) -> int: ...

    @property
    def state(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def bytes(self) -> int: ...

    @property
    def tasks(self) -> Sequence[str]: ...

    @property
    def parent(self) -> str | None: ...


class ApiDeps(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the API is given. It owns nothing of it."""

    pipeline: Pipeline
    background: Background
    storage: Storage
    engine: EnginePool
    prefixes: PrefixStore
    dispatcher: Dispatcher
    settings: Settings  # as at the start; targets change with a reload
    targets: Callable[[], Sequence[TargetSettings]]  # as they are now
    redaction: Callable[[], RedactionSettings]  # as it is now
    models: Callable[[], Sequence[ModelCard]]
    model: Callable[[str], ModelCard | None]  # one of those, without a look at the others
    aliases: Aliases
    tasks: TaskMemory
    tokens: Tokens
    now_ms: Callable[[], int]
    version: str
    reload_targets: Callable[[], Awaitable[Settings]]  # reads the configuration again; returns it
    heartbeat_s: float = HEARTBEAT_S  # between comments on a quiet stream


def deps_of(request: Request) -> ApiDeps:
    """Return the collaborators of the app that serves this request."""
    deps: ApiDeps = request.app.state.deps
    return deps


def key_of(request: Request) -> CallerKey | None:
    """Return the caller's own key, None where it came with one of the device's two tokens."""
    key: CallerKey | None = request.scope.get(KEY)
    return key


def need_admin(request: Request) -> None:
    """Raise Forbidden unless the caller has the admin token."""
    if request.scope[ROLE] is not Role.ADMIN:
        raise Forbidden("this needs the admin token (the file admin-token in the data directory)")
