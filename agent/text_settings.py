"""The sections of the configuration about texts: what is replaced before one leaves, and what is refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta


class RedactionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is replaced in a text before it leaves, beside the kinds that are always found. See docs/egress.md."""

    terms: Annotated[
        tuple[Annotated[str, Meta(min_length=2, max_length=200)], ...],
        Meta(description="Words and names that must not leave: found as whole words, whatever their case."),
    ] = ()
    names: Annotated[
        str,
        Meta(description="An installed model that tags names in texts (task tag); empty: names stay. It misses some."),
    ] = ""
    name_labels: Annotated[
        tuple[str, ...],
        Meta(description="Which labels of that model are replaced, without B- and I-; empty: all."),
    ] = ()


class ModerationAction(StrEnum):
    """What becomes of a request whose text is of a forbidden kind."""

    REFUSE = "refuse"  # an error, before anything is made of it or stored
    HOLD = "hold"  # answered here; it leaves the device only when a person has released it


class ModerationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A look at what users say, before the model writes and before a row is accepted. See docs/tasks.md."""

    task: Annotated[
        str,
        Meta(
            description="A taught task of kind labels that sorts the text; empty: nobody looks. While it cannot judge, nothing is answered."
        ),
    ] = ""
    allowed: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="The labels of that task that may pass; all others are forbidden."),
    ] = ("fine",)
    action: Annotated[
        ModerationAction,
        Meta(
            description="refuse: an error (requests to be sorted pass). hold: answered here, and sent only when a person has released it."
        ),
    ] = ModerationAction.REFUSE
    least: Annotated[
        float,
        Meta(
            gt=0, le=1, description="Probability of all forbidden labels together from which on a text is one of them."
        ),
    ] = 0.5
