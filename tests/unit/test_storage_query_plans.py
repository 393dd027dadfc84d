"""Hot statements use their index, walk nothing else and sort nothing."""

import re

import pytest
from fakes import storage_values as values

from agent.storage import statements as sql

ANY = {
    "id": "x", "key": "k", "target": "t", "now_ms": 1, "lease": "l", "lease_expires_at_ms": 2, "state": "pending",
    "limit": 10, "least": 0, "before_id": "~", "after_id": "", "since_ms": 0, "unfetched": 0, "settled_before_ms": 1, "target_fingerprint": "f", "only_released": 1,
}  # fmt: skip

INDEX_OF = {
    "REQUEST_OF_KEY": "requests_by_key",
    "REQUEST_LIST_STATE": "requests_by_state",
    "REQUEST_RUNNING": "requests_by_state",
    "REQUEST_TO_PURGE": "requests_to_purge",
    "REQUEST_TO_DROP": "requests_to_drop",
    "REQUEST_UNFETCHED": "requests_unfetched",
    "ESCALATION_PROMOTE": "escalations_deferred",
    "ESCALATION_CLAIM": "escalations_ready",
    "ESCALATION_READY": "escalations_ready",
    "ESCALATION_NEXT": "escalations_deferred",
    "ESCALATION_HASTEN": "escalations_deferred",
    "ESCALATION_LIST_STATE": "escalations_by_state",
    "ESCALATION_OLDEST": "escalations_by_state",
    "ESCALATION_IDS": "COVERING INDEX escalations_by_state",
    "ESCALATION_ENDED": "escalations_by_state",
    "ESCALATION_TO_HOLD": "escalations_by_state",
    "ESCALATION_TO_EXPIRE": "escalations_to_expire",
    "ESCALATION_OVERDUE": "escalations_leased",
    "ESCALATION_OF_REQUEST": "sqlite_autoindex_escalations",
    "ESCALATION_HELD": "sqlite_autoindex_escalations",
    "ATTEMPT_OF_LEASE": "sqlite_autoindex_attempts",
    "ATTEMPTS_OF": "attempts_by_escalation",
    "RESULTS_GET": "sqlite_autoindex_results",
    "EGRESS_LIST": "egress_by_time",
}
COUNTERS = ["REQUEST_COUNTS", "ESCALATION_COUNTS", "ESCALATION_OPEN_TOTAL", "ESCALATION_PENDING_FOR"]


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    connection = values.raw_connection(values.prepared_dir(tmp_path_factory.mktemp("plans")))
    yield connection
    connection.close()


def plan(connection, name):
    statement = getattr(sql, name)
    parameters = {word: ANY[word] for word in re.findall(r":(\w+)", statement)}
    return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())


@pytest.mark.parametrize(("name", "index"), INDEX_OF.items())
def test_uses_its_index_alone(connection, name, index):
    found = plan(connection, name)
    assert index in found, found
    assert "SCAN" not in found, found
    assert "TEMP B-TREE" not in found, found


@pytest.mark.parametrize("name", COUNTERS)
def test_counts_are_read_from_counters(connection, name):
    found = plan(connection, name)
    assert "_counts" in found
    assert not re.search(r"(SCAN|SEARCH) (requests|escalations)\b", found), found


def test_nothing_else_counts_rows():
    counting = [name for name, text in vars(sql).items() if name.isupper() and "count(" in text]
    assert counting == ["REQUEST_UNFETCHED", "EGRESS_TOTALS"]  # the first over an index of nothing else
