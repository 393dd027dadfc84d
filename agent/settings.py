"""The sections of the configuration and their values.

The field descriptions are the configuration reference (docs/configuration.md is generated).
``agent.configuration`` reads and checks the file.
"""

from __future__ import annotations

import hashlib
import typing
from datetime import date
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.compute import DeviceWish, DraftingMode, WeightLayout
from agent.delivery_settings import FileSettings, Metered, StorageSettings, WebhookSettings, WhenFull
from agent.egress_settings import BudgetSettings, EgressSettings, ImageConsent, KeySettings
from agent.rule_settings import RuleSettings
from agent.text_settings import ModerationSettings, RedactionSettings
from agent.types import EgressPolicy, Handoff, KvType, OnLowConfidence, RouteMode


class SharePrefixes(StrEnum):
    """Which beginnings of prompts requests share in memory."""

    ALL = "all"
    NAMED = "named"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class ServerSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP API."""

    host: Annotated[str, Meta(description="Address to listen on. Anything but loopback needs TLS.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.")] = 8484
    tls_cert: Annotated[str, Meta(description="PEM certificate; needed off loopback.")] = ""
    tls_key: Annotated[str, Meta(description="PEM key of the certificate.")] = ""
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Host headers accepted besides the loopback names (no port).")
    ] = ()
    allowed_origins: Annotated[tuple[str, ...], Meta(description="Origin headers accepted; none by default.")] = ()
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 28, description="Largest request body, images and other parts included.")
    ] = 4 << 20
    max_messages: Annotated[int, Meta(ge=1, le=100_000, description="Most messages in one chat request.")] = 1024
    request_timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Deadline of a request that names none, seconds.")
    ] = 300.0
    grace_s: Annotated[
        float, Meta(ge=0, le=600, description="How long a stop waits for running generations, seconds.")
    ] = 10.0


class EngineSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local model and its worker process."""

    model: Annotated[str, Meta(description="Default model, a name in the manifest.")] = "smollm2-135m-instruct"
    context_tokens: Annotated[int, Meta(ge=256, le=1 << 20, description="Prompt and answer together, tokens.")] = 4096
    parallel: Annotated[int, Meta(ge=1, le=64, description="Requests decoded at the same time.")] = 4
    kv_type: Annotated[KvType, Meta(description="Keys and values: f16, or q8_0 for half the memory.")] = KvType.F16
    drafting: Annotated[
        DraftingMode,
        Meta(description="Guess tokens from the prompt and verify several at once: auto (where it pays), or off."),
    ] = DraftingMode.AUTO
    draft_model: Annotated[
        str,
        Meta(description="Smaller GGUF model of the same tokenizer that guesses for engine.model; empty: none does."),
    ] = ""
    weights: Annotated[
        WeightLayout,
        Meta(
            description="fast: Q4_1 and Q5_1 files are held in memory as Q8_0, on x86 and up to 256 MiB: prompts twice as fast. stored: as in the file."
        ),
    ] = WeightLayout.FAST
    memory_mib: Annotated[
        int, Meta(ge=0, le=1 << 24, description="Most memory of one model's worker, MiB; 0: what is free.")
    ] = 0
    idle_unload_s: Annotated[float, Meta(ge=0, description="Seconds unused until a model unloads; 0: never.")] = 0.0
    waiting_line: Annotated[int, Meta(ge=0, le=10_000, description="Waiting requests; one more is a 429.")] = 32
    devices: Annotated[
        DeviceWish, Meta(description="Where encoders run: auto (the best that proves itself), cpu, or only gpu or npu.")
    ] = DeviceWish.AUTO
    threads: Annotated[int, Meta(ge=0, le=256, description="Threads; 0: as the machine has free, step by step.")] = 0
    thinking_budget_tokens: Annotated[
        int, Meta(ge=0, le=1 << 20, description="Most tokens of thought where a request names no budget; 0: none.")
    ] = 1024
    load_timeout_s: Annotated[float, Meta(gt=0, le=3600, description="Longest load of a model, seconds.")] = 120.0
    share_prefixes: Annotated[
        SharePrefixes,
        Meta(
            description="all: prompts share what begins alike. named: only [[prefixes]], and requests of one cache_salt."
        ),
    ] = SharePrefixes.ALL
    prefix_disk_bytes: Annotated[
        int, Meta(ge=0, description="Ceiling of saved [[prefixes]] on disk, bytes; 0: none is saved.")
    ] = 256 << 20
    crashes_to_quarantine: Annotated[
        int, Meta(ge=1, le=100, description="Crashes of one model in crash_window_s after which it is not started.")
    ] = 3
    crash_window_s: Annotated[float, Meta(gt=0, le=86_400, description="Span in which crashes count, seconds.")] = 600.0
    confine: Annotated[
        bool, Meta(description="Lock the worker in before it loads a model (no sockets, no programs).")
    ] = True


class ConfidenceSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a local answer counts as sure."""

    threshold: Annotated[
        float, Meta(ge=0, le=1, description="An answer below this score is not sure. On the estimator's scale, 0..1.")
    ] = 0.5
    estimator: Annotated[str, Meta(description="Score of an answer without a calibration.")] = "lowest_tenth"


class RoutingSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of a request that names none."""

    mode: Annotated[RouteMode, Meta(description="Route of a request that names none.")] = RouteMode.LOCAL_FIRST
    on_low_confidence: Annotated[
        OnLowConfidence, Meta(description="What a caller gets that names nothing: draft, wait, defer or abstain.")
    ] = OnLowConfidence.DRAFT
    rules: Annotated[
        tuple[RuleSettings, ...], Meta(description="[[routing.rules]] tables; the first that holds decides. See below.")
    ] = ()


class QueueSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outbox: ceilings, life and attempts."""

    max_rows: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Ceiling of open rows; one more is refused (507).")
    ] = 100_000
    max_bytes: Annotated[int, Meta(ge=4096, description="Ceiling of the bodies of open rows, bytes.")] = 1 << 30
    when_full: Annotated[
        WhenFull,
        Meta(description="At the ceiling: reject-new, or what goes for the new row, drop-oldest, drop-lowest."),
    ] = WhenFull.REJECT_NEW
    ttl_s: Annotated[int, Meta(ge=1, le=30 * 86_400, description="Life of a row that nobody answered, seconds.")] = (
        7 * 86_400
    )
    max_attempts: Annotated[
        int, Meta(ge=1, le=1000, description="Sends that fail before a row is dead. Offline is not an attempt.")
    ] = 12
    lease_s: Annotated[float, Meta(gt=0, le=86_400, description="How long one send may hold a row, seconds.")] = 600.0
    ballast_bytes: Annotated[int, Meta(ge=0, description="Space reserved to free when the disk is full, bytes.")] = (
        16 << 20
    )


class RetentionSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long texts stay on this device."""

    bodies: Annotated[
        typing.Literal["keep", "none"],
        Meta(description="none: texts go with the end of a request; what nobody could read before, once fetched."),
    ] = "keep"
    answered_s: Annotated[int, Meta(ge=0, description="How long texts stay after an answer, seconds.")] = 86_400
    late_s: Annotated[int, Meta(ge=0, description="How long a late answer that nobody fetched stays, seconds.")] = (
        30 * 86_400
    )
    rows_s: Annotated[
        int,
        Meta(
            ge=0,
            description="How long an ended request is known without its texts (its Idempotency-Key too), seconds.",
        ),
    ] = 90 * 86_400


class ConnectivitySettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the daemon finds out whether a target can be reached."""

    connect_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Connect timeout of a probe or send, DNS included, seconds.")
    ] = 3.0
    probe_cap_s: Annotated[float, Meta(ge=1, le=3600, description="Longest wait between probes on mains, seconds.")] = (
        60.0
    )
    probe_cap_battery_s: Annotated[
        float, Meta(ge=1, le=3600, description="Longest wait between probes on battery, seconds.")
    ] = 300.0
    metered: Annotated[
        Metered, Meta(description="Whether the line costs: auto (NetworkManager is asked), yes, no.")
    ] = Metered.AUTO
    hold_on_metered: Annotated[bool, Meta(description="Rows wait on a metered line, but for priorities above 0.")] = (
        False
    )
    hold_below_battery_percent: Annotated[
        int, Meta(ge=0, le=100, description="Rows wait on battery below this charge, as on a metered line; 0: never.")
    ] = 0


class PullSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where models come from. Requests and targets are not concerned."""

    offline: Annotated[
        bool, Meta(description="No model is downloaded, whatever a command says. HF_HUB_OFFLINE=1 does the same.")
    ] = False
    endpoint: Annotated[
        str, Meta(description="Hub or mirror, https. Empty: $HF_ENDPOINT, else https://huggingface.co.")
    ] = ""
    token_file: Annotated[
        str, Meta(description="File with an access token of the hub, mode 0600. Empty: $HF_TOKEN, if set.")
    ] = ""


class TargetSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somewhere bigger to escalate to, one [[targets]] table each."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the target.")]
    base_url: Annotated[str, Meta(description="URL of the OpenAI API, with /v1. https, or http on loopback.")]
    model: Annotated[str, Meta(min_length=1, description="Model to ask for there.")]
    egress: Annotated[
        EgressPolicy,
        Meta(
            description="allow: sent as it is. redact: pseudonymised, or not sent. approve: pseudonymised, then a person releases each row. never: nothing."
        ),
    ]
    images: Annotated[
        ImageConsent,
        Meta(
            description="Images, sound and files: never; approve, a person releases each row that holds some, whatever egress says; allow, as egress says. Metadata of images are always removed."
        ),
    ] = ImageConsent.APPROVE
    api_key_env: Annotated[str, Meta(description="Environment variable with the API key.")] = ""
    api_key_file: Annotated[str, Meta(description="File with the API key, mode 0600.")] = ""
    handoff: Annotated[
        Handoff, Meta(description="fresh, refine (the draft goes along) or verify (the draft is judged).")
    ] = Handoff.FRESH
    timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Longest send, from connect to the whole answer, seconds.")
    ] = 120.0
    concurrency: Annotated[int, Meta(ge=1, le=64, description="Sends under way at once.")] = 2
    min_interval_s: Annotated[float, Meta(ge=0, le=3600, description="Shortest time between two sends, seconds.")] = 0.0
    bytes_per_s: Annotated[
        int, Meta(ge=0, description="Pace of what is sent, for a narrow line: bytes a second on average; 0: no limit.")
    ] = 0
    ca_file: Annotated[str, Meta(description="PEM file with the certificate authority, for a private one.")] = ""
    chain: Annotated[bool, Meta(description="The target is an Outrider that may hand on further.")] = False
    train_on_answers: Annotated[
        bool, Meta(description="The provider's terms allow its answers as training data: `tasks export --targets`.")
    ] = False
    max_reply_bytes: Annotated[int, Meta(ge=1024, le=1 << 28, description="Largest reply.")] = 16 << 20
    max_input_tokens: Annotated[
        int, Meta(ge=0, description="Requests with more tokens, by their length, are not for it; 0: none is too long.")
    ] = 0
    failover_s: Annotated[
        float,
        Meta(
            ge=0,
            description="How long a row waits while it cannot be reached, before the next target of its rule is asked.",
        ),
    ] = 60.0
    max_output_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 20,
            description="Most tokens of an answer, asked for as max_tokens; 0: as the request says. A budget needs it.",
        ),
    ] = 0
    input_price: Annotated[
        Decimal | None,
        Meta(description="Dollars per million tokens sent; without both prices those of [[prices]] for the model."),
    ] = None
    output_price: Annotated[Decimal | None, Meta(description="Dollars per million tokens of the answer.")] = None
    price_as_of: Annotated[date | None, Meta(description="When these prices were looked up: 2026-01-31.")] = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of address and model: who a row was accepted or released for, whatever the name."""
        return hashlib.sha256(f"{self.base_url.rstrip('/')}\n{self.model}".encode()).hexdigest()


class PriceSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs wherever it is asked, one [[prices]] table each. A target's own prices come first."""

    name: Annotated[str, Meta(min_length=1, description="The model, as targets ask for it.")]
    input: Annotated[Decimal, Meta(description="Dollars per million tokens sent.")]
    output: Annotated[Decimal, Meta(description="Dollars per million tokens of the answer.")]
    as_of: Annotated[date | None, Meta(description="When these prices were looked up: 2026-01-31.")] = None


class PrefixExample(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question with its answer, shown to the model before the user's own."""

    user: Annotated[str, Meta(min_length=1, description="What a user says.")]
    assistant: Annotated[str, Meta(min_length=1, description="What the model is to answer.")]


class PrefixSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many prompts begin, one [[prefixes]] table each. See docs/prefixes.md."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the prefix.")]
    model: Annotated[str, Meta(description="Whose prompts begin so; empty: the default model's.")] = ""
    system: Annotated[str, Meta(description="The system prompt, exactly as requests send it.")] = ""
    system_file: Annotated[
        str, Meta(description="File with the system prompt (UTF-8), beside the configuration unless absolute.")
    ] = ""
    examples: Annotated[
        tuple[PrefixExample, ...], Meta(description="Examples that follow it, each with user and assistant.")
    ] = ()


class AdapterSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter under a name of its own, one [[adapters]] table each. See docs/adapters.md."""

    name: Annotated[
        str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="What requests ask for as their model.")
    ]
    model: Annotated[str, Meta(min_length=1, description="Base model, a name in the manifest.")]
    path: Annotated[str, Meta(min_length=1, description="The adapter as a GGUF file; absolute, or from ~ on.")]
    scale: Annotated[float, Meta(gt=0, le=16, description="Factor of the adapter's effect.")] = 1.0
    sha256: Annotated[
        str, Meta(pattern=r"^([0-9a-f]{64})?$", description="What the file must be; empty: whatever it is.")
    ] = ""


class ArmSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way of answering, compared with others."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the arm.")]
    share: Annotated[float, Meta(gt=0, description="Its part of the requests, beside those of the other arms.")] = 1.0
    route_mode: Annotated[
        RouteMode | None,
        Meta(description="local_only, local_first (hybrid), cloud_first or cloud_only; none: as the request would go."),
    ] = None
    model: Annotated[str, Meta(description="The local model; empty: the one that would answer anyway.")] = ""


class ExperimentSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ways of answering that are compared on real requests, one [[experiments]] table each. See docs/experiments.md."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the experiment.")]
    arms: Annotated[tuple[ArmSettings, ...], Meta(min_length=2, description="[[experiments.arms]], two or more.")]
    task: Annotated[str, Meta(description="Only requests of this task; empty: all.")] = ""
    key: Annotated[
        str,
        Meta(
            pattern=r"^(user|metadata\.\S{1,64})$",
            description="What keeps its arm: user, or metadata.NAME. A request without it is in no arm.",
        ),
    ] = "user"


class Settings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    data_dir: Annotated[
        str, Meta(description="Database, keys, tokens and models. Default: $XDG_DATA_HOME/outrider.")
    ] = ""
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    confidence: ConfidenceSettings = ConfidenceSettings()
    routing: RoutingSettings = RoutingSettings()
    queue: QueueSettings = QueueSettings()
    retention: RetentionSettings = RetentionSettings()
    files: FileSettings = FileSettings()
    connectivity: ConnectivitySettings = ConnectivitySettings()
    egress: EgressSettings = EgressSettings()
    webhook: WebhookSettings = WebhookSettings()
    redaction: RedactionSettings = RedactionSettings()
    moderation: ModerationSettings = ModerationSettings()
    pull: PullSettings = PullSettings()
    storage: StorageSettings = StorageSettings()
    keys: tuple[KeySettings, ...] = ()
    targets: tuple[TargetSettings, ...] = ()
    prices: tuple[PriceSettings, ...] = ()
    budgets: tuple[BudgetSettings, ...] = ()
    adapters: tuple[AdapterSettings, ...] = ()
    prefixes: tuple[PrefixSettings, ...] = ()
    experiments: tuple[ExperimentSettings, ...] = ()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)
