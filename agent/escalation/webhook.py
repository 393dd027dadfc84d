"""Tells a webhook when a late answer has come or a batch has ended.

Events have the form of the OpenAI API's and are signed as Standard Webhooks 1.0.0 says, so that the
openai client's ``webhooks.unwrap`` takes them. They hold ids and no texts: who wants the answer asks
for it. One that is not taken is sent again, under the same id, for three days.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

import httpx2

from agent import __version__
from agent.configuration import LOOPBACK_HOSTS
from agent.delivery_settings import WebhookSettings
from agent.errors import ConfigError, KeyProblem, StorageError
from agent.escalation.certificates import verifying
from agent.escalation.connectivity import BACKOFF_CAP_S, full_jitter_s
from agent.escalation.replies import retry_after
from agent.storage.webhook_store import Event, Left, WebhookStore
from agent.telemetry import LOG, METRICS, log_fault

SECRET_FILE = "webhook-secret"  # noqa: S105 - a file name
PREFIX = "whsec_"
RETRY_BASE_S = 2.0
GIVE_UP_MS = 3 * 86_400_000
LOOK_EVERY_S = 1.0  # for new events: they are written by the database, which cannot wake anybody
AT_ONCE = 16
_GONE = 410


def check_url(settings: WebhookSettings) -> bool:
    """Return whether the webhook is on this device. Raises ConfigError for a URL that must not be used."""
    try:
        url = httpx2.URL(settings.url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"webhook.url {settings.url!r}: {error}") from error
    local = url.host in LOOPBACK_HOSTS
    if url.scheme != "https" and not (url.scheme == "http" and local):
        raise ConfigError(f"webhook.url {settings.url!r} must begin with https://, or http:// on loopback")
    if url.userinfo:
        raise ConfigError("webhook.url must hold no name and password: deliveries are signed instead")
    return local


def load_secret(settings: WebhookSettings, data_dir: Path) -> bytes:
    """Return the key of the signatures; in ``data_dir`` it is drawn at the first call. Raises KeyProblem."""
    path = Path(settings.secret_file).expanduser() if settings.secret_file else data_dir / SECRET_FILE
    try:
        if not settings.secret_file and not path.exists():
            _create(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyProblem(f"{path} can be read by others: chmod 600 {path}")
        text = path.read_text(encoding="ascii").strip()
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (OSError, ValueError) as error:
        raise KeyProblem(f"{path} holds no webhook secret ({PREFIX} and base64): {error}") from error
    if not text.startswith(PREFIX) or len(key) < 24:
        raise KeyProblem(f"{path} holds no webhook secret: {PREFIX} and the base64 of at least 24 bytes")
    return key


def _create(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(PREFIX + base64.b64encode(secrets.token_bytes(32)).decode("ascii") + "\n")


def signature(key: bytes, event_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the ``webhook-signature`` header (Standard Webhooks 1.0.0, symmetric)."""
    signed = f"{event_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii")


class Webhook:
    """Delivers the events of one database to one URL. Made and used on one event loop."""

    def __init__(
        self,
        settings: WebhookSettings,
        key: bytes,
        store: WebhookStore,
        *,
        now_ms: Callable[[], int],
        random: Random,
        may_leave: Callable[[], bool],
    ) -> None:
        """``may_leave``: whether anything may leave this device now; a webhook on loopback needs no leave."""
        self._settings = settings
        self._key = key
        self._store = store
        self._now_ms = now_ms
        self._random = random
        self._may_leave = may_leave
        self._local = check_url(settings)

    async def run(self) -> None:
        """Deliver until cancelled. What is under way then is delivered again at the next start, under its id."""
        limits = httpx2.Limits(max_keepalive_connections=4)
        async with httpx2.AsyncClient(
            verify=verifying(),
            trust_env=False,
            follow_redirects=False,
            timeout=self._settings.timeout_s,
            limits=limits,
        ) as client:
            while True:
                try:
                    await self._deliver_due(client)
                except StorageError as error:
                    LOG.error("webhook: %s", error)
                except Exception:
                    log_fault("webhook: a fault of this program; deliveries go on")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _deliver_due(self, client: httpx2.AsyncClient) -> None:
        while self._local or self._may_leave():
            due = await self._store.due(self._now_ms(), AT_ONCE)
            if not due:
                return
            # Each to its end: what is still under way must not be found due again.
            outcomes = await asyncio.gather(*(self._deliver(client, event) for event in due), return_exceptions=True)
            if failure := next((one for one in outcomes if one is not None), None):
                raise failure

    async def _deliver(self, client: httpx2.AsyncClient, event: Event) -> None:
        now_ms = self._now_ms()
        told = {
            "object": "event",
            "id": event.id,
            "type": event.type,
            "created_at": event.created_at_ms // 1000,
            "data": {"id": event.subject_id},
        }
        body = json.dumps(told, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": f"outrider/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": str(now_ms // 1000),
            "webhook-signature": signature(self._key, event.id, now_ms // 1000, body),
        }
        until_ms = None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with client.stream("POST", self._settings.url, content=body, headers=headers) as response:
                    status = response.status_code
                    until_ms = retry_after(dict(response.headers), now_ms)
        except (OSError, TimeoutError, httpx2.HTTPError) as error:
            status, why = 0, type(error).__name__
        else:
            why = f"HTTP {status}"
        METRICS.count("webhooks", outcome="delivered" if 200 <= status < 300 else why)
        # Off this device it may have left even where nobody replied.
        left = None if self._local else Left(now_ms, len(body), hashlib.sha256(body).hexdigest())
        if 200 <= status < 300:
            await self._store.delivered(event, left)
        elif status == _GONE or now_ms - event.created_at_ms > GIVE_UP_MS:
            LOG.error("webhook: event %s is given up: %s", event.id, why)
            await self._store.give_up(event, why, left)
        else:
            wait_s = full_jitter_s(self._random, event.attempts, base_s=RETRY_BASE_S, cap_s=BACKOFF_CAP_S)
            await self._store.put_off(event, max(until_ms or 0, now_ms + round(wait_s * 1000)), why, left)
