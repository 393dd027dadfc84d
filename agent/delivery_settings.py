"""The sections of the configuration that say what is kept on disk, and how answers that come later are told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta


class WhenFull(StrEnum):
    """What becomes of a new row when the queue is at its ceiling."""

    REJECT_NEW = "reject-new"
    DROP_OLDEST = "drop-oldest"
    DROP_LOWEST = "drop-lowest"


class Metered(StrEnum):
    """Whether the device's line costs by the byte."""

    AUTO = "auto"  # as NetworkManager says; no where there is none
    YES = "yes"
    NO = "no"


class FileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Uploaded files and the outputs of batches, in the encrypted database. See docs/batches.md."""

    max_bytes: Annotated[int, Meta(ge=1024, le=1 << 30, description="Largest uploaded file, bytes.")] = 100 << 20
    total_bytes: Annotated[int, Meta(ge=1024, description="Ceiling of all files, bytes; one more is a 507.")] = 1 << 30
    keep_s: Annotated[
        int, Meta(ge=0, description="How long a file stays that names no other span, and a batch, seconds.")
    ] = 30 * 86_400


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the data directory may take."""

    disk_budget_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Ceiling of all in data_dir: models, pulls, build environments, queue; 0: what is free. "
            "Nothing is pulled or made above it.",
        ),
    ] = 0


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told when a late answer has come or a batch has ended. See docs/delivery.md."""

    url: Annotated[
        str, Meta(description="Where events are posted: https, or http on loopback. They hold ids, no texts.")
    ] = ""
    secret_file: Annotated[
        str, Meta(description="File with the secret (whsec_...), mode 0600. Empty: webhook-secret in data_dir, drawn.")
    ] = ""
    timeout_s: Annotated[float, Meta(gt=0, le=300, description="Longest delivery of one event, seconds.")] = 15.0
