"""Values for storage tests, and data directories that need no migration child each."""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import sqlcipher3.dbapi2

from agent.identifiers import uuid7
from agent.settings import QueueSettings, RetentionSettings
from agent.storage import Storage, keys
from agent.storage import open_storage as open_by_real_clock
from agent.storage.connection import DATABASE_NAME
from agent.types import (
    Action,
    Confidence,
    Decision,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Message,
    Reason,
    Token,
)

NOW = 1_700_000_000_000
DAY = 86_400_000
FINGERPRINT = "f" * 64
QUEUE = QueueSettings(ballast_bytes=0)
KEEP = RetentionSettings()

# Tests pass moments in as they like: no clock of the device contradicts them.
open_storage = functools.partial(open_by_real_clock, uptime=None)

_serial = itertools.count()


@functools.cache
def _template() -> Path:
    from agent.storage.migrations import migrate

    folder = Path(tempfile.mkdtemp(prefix="outrider-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    migrate(folder / DATABASE_NAME, keys.load_or_create(folder, {}).material)
    return folder


def prepared_dir(parent: Path) -> Path:
    """Return a data directory with a key and the current schema."""
    return Path(shutil.copytree(_template(), parent / f"data-{next(_serial)}"))


async def opened(parent: Path, *, queue=QUEUE, retention=KEEP, now_ms: int = NOW) -> Storage:
    """Open a fresh storage."""
    return await open_storage(prepared_dir(parent), queue, retention, now_ms=now_ms)


def fast_folder() -> Path:
    """Return a temporary folder in memory where there is one; commits still go through fsync."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="outrider-test-", dir=memory if usable else None))


def request(text: str = "what is the capital of Vanuatu?", *, now_ms: int = NOW, **fields) -> InferenceRequest:
    """Return a request; ``fields`` replace the defaults."""
    values = {
        "id": uuid7(now_ms),
        "model": "small",
        "messages": (Message("user", text),),
        "body_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "received_at_ms": now_ms,
    }
    return InferenceRequest(**{**values, **fields})


def generation(text: str = "Port Vila") -> Generation:
    """Return a local answer."""
    return Generation(text=text, finish_reason="stop", tokens=(Token(7, text.encode(), -0.2, -1.9, 0.4),))


CRASHED = Generation(failure=Failure(FailureKind.CRASH, "the worker died"))
UNSURE = Confidence(score=0.2, estimator="lowest_tenth@1", signals={"mean": 0.7})
ANSWERED = Decision(action=Action.ANSWERED, reason=Reason.CONFIDENT, rule_id="threshold", threshold=0.5)
REFUSED = Decision(action=Action.REFUSED, reason=Reason.CRASH, rule_id="failure")
LEFT = Decision(action=Action.REFUSED, reason=Reason.CANCELLED, rule_id="caller")


def queued(target: str | None = "cloud", egress: EgressPolicy = EgressPolicy.ALLOW, **fields) -> Decision:
    """Return the decision that makes an outbox row."""
    values = {
        "action": Action.QUEUED,
        "reason": Reason.LOW_CONFIDENCE,
        "rule_id": "threshold",
        "threshold": 0.5,
        "target": target,
        "target_fingerprint": target and FINGERPRINT,
        "egress": egress,
    }
    return Decision(**{**values, **fields})


async def enqueue(storage: Storage, decision: Decision | None = None, *, now_ms: int = NOW, **fields):
    """Store a request whose answer is not sure; return its record."""
    asked = request(now_ms=now_ms, **fields)
    assert await storage.journal.open(asked, now_ms=now_ms) is None
    return await storage.journal.settle(asked, generation(), UNSURE, decision or queued(), now_ms=now_ms)


def raw_connection(data_dir: Path):
    """Open the database as a stranger with the key would, past everything that storage guards."""
    connection = sqlcipher3.dbapi2.connect(str(data_dir / DATABASE_NAME), isolation_level=None)
    connection.execute(f"PRAGMA key = \"x'{keys.load(data_dir, {}).material.hex()}'\"")
    return connection
