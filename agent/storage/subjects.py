"""Whose a row is: a keyed digest of a person's name, so that what is kept of that person is found without a search.

A request names its subject as ``user``, ``safety_identifier`` or ``metadata.subject``, all inside its encrypted
body. Beside it stands an HMAC of the name, under a key of its own in the same database: names are not in the
index, and two databases tag the same person differently. A tag outlives the texts, and the request too, as long as
something that was made of it stays (feedback, a line of a batch, an example of a task).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from agent.errors import BodyGone
from agent.storage.connection import Connection
from agent.types import InferenceRequest

SECRET = "subject_tags"  # noqa: S105 - the name of a row
KEEP_ERASURES_MS = 86_400_000  # as long as a request may run that was accepted before
TAG_BYTES = 16

# ``owner``: id of a request, batch_id:number of a line, task:use of an example. ``input``: digest of the text that
# was asked, by which an example that was made of it is known.
TAGS = """
    tag BLOB NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('request', 'line', 'example')),
    owner TEXT NOT NULL,
    input BLOB NOT NULL,
    PRIMARY KEY (tag, kind, owner, input)
"""
ERASURES = "tag BLOB PRIMARY KEY, at_ms INTEGER NOT NULL"
STATEMENTS = (
    "CREATE INDEX subject_tags_by_owner ON subject_tags (kind, owner)",
    "CREATE INDEX subject_tags_by_input ON subject_tags (input) WHERE kind = 'request'",
    """
    CREATE TRIGGER requests_untag AFTER DELETE ON requests
    WHEN NOT EXISTS (SELECT 1 FROM feedback WHERE request_id = OLD.id)
    BEGIN DELETE FROM subject_tags WHERE kind = 'request' AND owner = OLD.id; END
    """,
    """
    CREATE TRIGGER feedback_untag AFTER DELETE ON feedback
    WHEN NOT EXISTS (SELECT 1 FROM requests WHERE id = OLD.request_id)
        AND NOT EXISTS (SELECT 1 FROM feedback WHERE request_id = OLD.request_id)
    BEGIN DELETE FROM subject_tags WHERE kind = 'request' AND owner = OLD.request_id; END
    """,
    """
    CREATE TRIGGER batch_lines_untag AFTER DELETE ON batch_lines
    BEGIN DELETE FROM subject_tags WHERE kind = 'line' AND owner = OLD.batch_id || ':' || OLD.number; END
    """,
    """
    CREATE TRIGGER task_examples_untag AFTER DELETE ON task_examples
    BEGIN DELETE FROM subject_tags WHERE kind = 'example' AND owner = OLD.task || ':' || OLD.use; END
    """,
)

_KEY_OF_TAGS = "SELECT value FROM secrets WHERE name = 'subject_tags'"
_PUT = "INSERT OR IGNORE INTO subject_tags (tag, kind, owner, input) VALUES (:tag, :kind, :owner, :input)"
_INHERIT = """
INSERT OR IGNORE INTO subject_tags (tag, kind, owner, input)
SELECT tag, 'request', :id, :input FROM subject_tags WHERE kind = 'request' AND owner = :previous
"""
_ERASED = "SELECT 1 FROM erasures WHERE tag = :tag AND at_ms >= :received_at_ms"
_EXAMPLES_DROP = "DELETE FROM subject_tags WHERE kind = 'example' AND owner = :owner"
_EXAMPLE_PUT = """
INSERT OR IGNORE INTO subject_tags (tag, kind, owner, input)
SELECT tag, 'example', :owner, input FROM subject_tags WHERE kind = 'request' AND input = :input
"""


class _Whose(msgspec.Struct):
    """The part of a request's body that says whose it is."""

    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    response: Any = None
    idempotency_key: Any = None


def secret_of(connection: Connection) -> bytes:
    """Return the key of the tags of this database."""
    return bytes(connection.execute(_KEY_OF_TAGS).fetchone()["value"])


def tag_of(secret: bytes, subject: str) -> bytes:
    """Return the tag of a person."""
    return hmac.digest(secret, b"subject\0" + subject.encode("utf-8", "surrogatepass"), hashlib.sha256)[:TAG_BYTES]


def input_of(secret: bytes, text: str) -> bytes:
    """Return the digest of what was asked."""
    return hmac.digest(secret, b"input\0" + text.encode("utf-8", "surrogatepass"), hashlib.sha256)[:TAG_BYTES]


def names_in(body: Mapping[str, Any] | InferenceRequest | _Whose) -> set[str]:
    """Return the names by which a body says whose it is."""
    if isinstance(body, Mapping):
        user, safety, metadata = (body.get(name) for name in ("user", "safety_identifier", "metadata"))
    else:
        user, safety, metadata = body.user, body.safety_identifier, body.metadata
    found = (user, safety, metadata.get("subject") if isinstance(metadata, Mapping) else None)
    return {name for name in found if isinstance(name, str) and name}


def names_in_json(body: bytes) -> set[str]:
    """Return the names in the JSON body of a call; none where it is no such body."""
    try:
        return names_in(msgspec.json.decode(body, type=_Whose))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return set()


def tag_request(connection: Connection, request: InferenceRequest) -> None:
    """Tag a new request, as its predecessor in a conversation too. Raises BodyGone: erased while it was under way."""
    if names := names_in(request):
        secret = secret_of(connection)
        for name in names:
            erased = {"tag": tag_of(secret, name), "received_at_ms": request.received_at_ms}
            if connection.execute(_ERASED, erased).fetchone() is not None:
                raise BodyGone("what is kept of this user was erased while the request ran; nothing of it is kept")
    _tag(connection, request, names)


def _tag(connection: Connection, request: InferenceRequest, names: Iterable[str]) -> None:
    previous = request.response.previous_id if request.response else None
    if not names and previous is None:
        return
    secret = secret_of(connection)
    asked = input_of(secret, request.messages[-1].content if request.messages else "")
    for name in names:
        values = {"tag": tag_of(secret, name), "kind": "request", "owner": request.id, "input": asked}
        connection.execute(_PUT, values)
    if previous is not None:
        connection.execute(_INHERIT, {"id": request.id, "input": asked, "previous": previous})


def tag_lines(connection: Connection, batch_id: str, lines: Iterable[tuple[int, bytes]]) -> None:
    """Tag lines of a batch, each a number and its JSON body."""
    secret = b""
    for number, body in lines:
        for name in names_in_json(body):
            secret = secret or secret_of(connection)
            owner = f"{batch_id}:{number}"
            connection.execute(_PUT, {"tag": tag_of(secret, name), "kind": "line", "owner": owner, "input": b""})


def tag_examples(connection: Connection, owner: str, inputs: Sequence[str]) -> None:
    """Tag the examples of a task that were made of somebody's requests, in place of earlier ones."""
    connection.execute(_EXAMPLES_DROP, {"owner": owner})
    secret = secret_of(connection)
    for text in inputs:
        connection.execute(_EXAMPLE_PUT, {"owner": owner, "input": input_of(secret, text)})


def tag_older(connection: Connection) -> None:
    """Tag all that is stored, as far as its texts are still there: of an earlier schema, or after damage."""
    from agent.storage.rows import unpack_request

    found = "SELECT id, body, idempotency_key FROM requests WHERE body IS NOT NULL ORDER BY id"
    secret = secret_of(connection)
    for row in connection.execute(found):
        whose = msgspec.msgpack.decode(row["body"], type=_Whose)
        if not names_in(whose) and whose.response is None:
            continue
        _tag(connection, unpack_request(row["body"]), names_in(whose))
        key = row["idempotency_key"] or ""
        if key.startswith("§"):  # of a line that may have its answer: that has no body any more
            for name in names_in(whose):
                values = {"tag": tag_of(secret, name), "kind": "line", "owner": key[1:], "input": b""}
                connection.execute(_PUT, values)
    for row in connection.execute("SELECT batch_id, number, body FROM batch_lines WHERE body IS NOT NULL"):
        tag_lines(connection, row["batch_id"], [(row["number"], row["body"])])
    for row in connection.execute("SELECT task, use, body FROM task_examples"):
        examples = msgspec.msgpack.decode(row["body"])
        tag_examples(connection, f"{row['task']}:{row['use']}", [one[0] for one in examples])
