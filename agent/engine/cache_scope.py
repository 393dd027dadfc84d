"""Who may find what is cached of a request's prompt.

How fast an answer begins, and ``cached_tokens`` in its usage, tell its caller that somebody
has asked something with the same beginning before. Requests of one scope tell each other that,
and nobody else; what the configuration names belongs to all.
"""

from __future__ import annotations

from agent.settings import SharePrefixes
from agent.types import InferenceRequest

EVERYBODY = ""  # the scope of what all requests may find


def cache_scope(request: InferenceRequest, share: SharePrefixes) -> str:
    """Return the scope: that of the caller's salt, else everybody's, or of this request alone."""
    if request.cache_salt is not None:
        return f"salt {request.cache_salt}"
    return EVERYBODY if share is SharePrefixes.ALL else f"request {request.id}"


def encoder_scope(salt: str | None, share: SharePrefixes) -> str | None:
    """Return the scope of an encoder's request; None: nothing is kept of it."""
    if salt is not None:
        return f"salt {salt}"
    return EVERYBODY if share is SharePrefixes.ALL else None
