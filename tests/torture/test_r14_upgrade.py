"""R14: a new release finds the full queue of an old one; an old release finds the database of a new one."""

import subprocess
import sys
import time
from collections import Counter

import pytest
from fakes import storage_values as values
from fakes.cloud import cloud_in_thread
from fakes.daemon_process import DaemonProcess
from fakes.old_database import OLD_SCHEMA, old_database
from test_r01_kills import drained

from agent.settings import TargetSettings
from agent.storage.connection import SCHEMA_VERSION
from agent.types import EgressPolicy

CONFIG = """
[[targets]]
name = "cloud"
base_url = "{url}"
model = "big"
egress = "allow"
concurrency = 8
"""


@pytest.mark.sizes(
    short={"rows": 20},
    full={"rows": 2000, "patience_s": 600},
    long={"rows": 20_000, "patience_s": 3600},
)
def test_upgrade_with_a_full_queue(tmp_path, size, shown, monkeypatch):
    """the full queue of schema 3 is brought to this release, drained, and a newer one is refused"""
    with cloud_in_thread() as cloud:
        daemon = DaemonProcess(tmp_path / "device", CONFIG.format(url=cloud.base_url))
        target = TargetSettings(name="cloud", base_url=cloud.base_url, model="big", egress=EgressPolicy.ALLOW)
        now_ms = time.time_ns() // 1_000_000
        ids = old_database(daemon.data, size["rows"], monkeypatch, fingerprint=target.fingerprint, now_ms=now_ms)
        began = time.monotonic()
        daemon.start()
        ready_s = time.monotonic() - began
        records = drained(daemon, ids)
        shown.did("rows of the old queue", size["rows"])
        shown.did("from schema to schema", f"{OLD_SCHEMA} to {SCHEMA_VERSION}")
        shown.did("start with the migration", f"{ready_s:.1f} s")
        shown.none("rows lost", [rid for rid, record in records.items() if record["state"] != "resolved"])
        sends = Counter(chat.last_user_text for chat in cloud.chats)
        shown.none("questions sent twice", [text for text, count in sends.items() if count > 1])
        wrong = [
            rid
            for rid, record in records.items()
            if record["cloud_answer"]["text"] != f"cloud: {record['request']['messages'][-1]['content']}"
        ]
        shown.none("answers that are not the owner's own", wrong)
        kept = list(daemon.data.glob(f"*.schema-{OLD_SCHEMA}"))
        shown.holds("the old database is kept beside it, for the way back", len(kept) == 1)
        assert daemon.stop() == 0
    raw = values.raw_connection(daemon.data)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    run = subprocess.run(
        [sys.executable, "-m", "agent", "serve"], env=daemon.environment, capture_output=True, text=True, check=False
    )
    last = run.stderr.strip().splitlines()[-1]
    shown.holds("a database of a newer release is refused, by name", run.returncode == 74 and "schema 99" in last)
