"""What a call of the Responses API says that the request made of it does not hold. A value only."""

from __future__ import annotations

import msgspec


class ResponseCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Kept with the request: what is told of a response again, and what its successor needs."""

    input: str  # JSON of the list of input items, as they came; none of earlier turns
    instructions: str | None = None  # the first message of the request, which no successor inherits
    previous_id: str | None = None  # request id of the response that this one goes on from
    store: bool = True  # whether it can be asked for later
