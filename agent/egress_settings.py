"""The sections of the configuration that say what may leave and what it may cost."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.types import EgressPolicy


class ImageConsent(StrEnum):
    """Whether what is no text may leave for a target: nothing in it can be pseudonymised."""

    NEVER = "never"
    APPROVE = "approve"
    ALLOW = "allow"

    @property
    def egress(self) -> EgressPolicy:
        """The policy that a request which holds some has at least."""
        return EgressPolicy(self.value)


class EgressSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may leave this device at all, whatever requests, tasks, keys and targets say. See docs/egress.md."""

    policy: Annotated[
        EgressPolicy,
        Meta(
            description="No policy of a target or request is looser than this. never: nothing leaves, and no target is probed (air gap)."
        ),
    ] = EgressPolicy.ALLOW


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller with a token of its own, one [[keys]] table each. See docs/egress.md."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the caller.")]
    token_file: Annotated[
        str, Meta(description="File with its token, mode 0600. Empty: keys/NAME in data_dir, drawn at the first start.")
    ] = ""
    egress: Annotated[EgressPolicy, Meta(description="No request of this caller leaves under a looser policy.")] = (
        EgressPolicy.ALLOW
    )


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What targets may take at most, one [[budgets]] table each. All that cover a row hold. See docs/egress.md."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the budget.")]
    target: Annotated[str, Meta(description="Only sends to this target; empty: to all of them together.")] = ""
    task: Annotated[str, Meta(description="Only requests of this task; empty: of all, and of none.")] = ""
    dollars_per_day: Annotated[Decimal | None, Meta(description="Ceiling of a day (UTC), dollars.")] = None
    dollars_per_month: Annotated[Decimal | None, Meta(description="Ceiling of a month (UTC), dollars.")] = None
    tokens_per_day: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Ceiling of a day, tokens sent and answered.")
    ] = None
    tokens_per_month: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Ceiling of a month, tokens sent and answered.")
    ] = None
