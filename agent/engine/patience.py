"""How long those who look after workers wait."""

from __future__ import annotations

import msgspec


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long the supervisor waits, seconds."""

    backoff_base_s: float = 0.5  # before the second restart in a row; doubles
    backoff_cap_s: float = 30.0
    stuck_s: float = 60.0  # an unconfirmed cancel means that the worker hangs
    leave_s: float = 2.0  # from the order to leave to the kill
    linger_s: float = 5.0  # unused, before the worker of a model that was replaced leaves
