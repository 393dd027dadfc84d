"""``outrider salvage``: what it keeps of a whole database, and of one whose parts are gone."""

import json

import pytest
from click.testing import CliRunner
from fakes import storage_values as values
from fakes.storage_values import KEEP, NOW, QUEUE

from agent.cli.main import cli
from agent.records import CloudAnswer, EscalationState
from agent.storage.connection import DATABASE_NAME
from agent.storage.salvage import salvage


@pytest.fixture
async def used(tmp_path):
    """A data directory with a row that waits and one that is answered."""
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, QUEUE, KEEP, now_ms=NOW)
    await values.enqueue(storage, text="one")
    row, record = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=100, now_ms=NOW)
    await storage.outbox.succeed(row, CloudAnswer(text="late", finish_reason="stop", model="big"), now_ms=NOW)
    waiting = await values.enqueue(storage, text="two")
    await storage.close()
    return data, record.id, waiting.id


async def test_of_a_whole_database_nothing_is_lost(used):
    data, answered, waiting = used
    report = salvage(data, now_ms=NOW)
    assert (report.lost, report.held, report.unanswered, report.log_bad_row) == (0, 0, 0, None)
    assert report.kept.exists()
    storage = await values.open_storage(data, QUEUE, KEEP, now_ms=NOW)
    assert (await storage.journal.get(answered)).cloud_answer.text == "late"
    assert (await storage.journal.get(waiting)).escalation.state is EscalationState.PENDING
    assert (await storage.outbox.counts())["pending"]["rows"] == 1
    assert (await storage.journal.counts())["resolved"] == 1
    assert await storage.egress_log.verify() is None
    # Its triggers are back: counters follow.
    await values.enqueue(storage, text="three")
    assert (await storage.outbox.counts())["pending"]["rows"] == 2
    await storage.close()


async def test_what_lost_its_row_waits_for_a_person_and_children_of_what_is_gone_go(used):
    data, answered, waiting = used
    raw = values.raw_connection(data)
    raw.execute("DELETE FROM escalations WHERE request_id = ?", (waiting,))
    raw.execute("DELETE FROM requests WHERE id = ?", (answered,))
    raw.execute("DROP TRIGGER egress_log_no_delete")
    raw.execute("DELETE FROM egress_log")
    raw.close()
    report = salvage(data, now_ms=NOW)
    assert report.held == 1
    assert report.log_bad_row == 1
    assert report.tables["escalations"].kept == 0
    assert report.tables["results"].kept == 1
    storage = await values.open_storage(data, QUEUE, KEEP, now_ms=NOW)
    row = (await storage.journal.get(waiting)).escalation
    assert (row.state, row.reason) == (EscalationState.AWAITING_APPROVAL, "restored")
    await storage.close()


def test_the_command_says_what_it_kept(used):
    data, *_ = used
    run = CliRunner().invoke(cli, ["--data-dir", str(data), "salvage", "--json"])
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["tables"]["requests"] == {"kept": 2, "lost": 0}
    run = CliRunner().invoke(cli, ["--data-dir", str(data), "salvage"])
    assert run.stdout == "every row could be read\n"
    assert f"{DATABASE_NAME}.damaged-" in run.stderr


def test_doctor_sees_the_damage_and_names_the_remedy(used):
    data, *_ = used
    database = data / DATABASE_NAME

    def finding():
        run = CliRunner().invoke(cli, ["--data-dir", str(data), "doctor", "--json"])
        return next(one for one in json.loads(run.stdout) if one["subject"] == "database")

    assert finding()["level"] == "ok"
    content = bytearray(database.read_bytes())
    content[-2000] ^= 1
    database.write_bytes(content)
    told = finding()
    assert told["level"] == "problem"
    assert "damaged" in told["detail"]
    assert "salvage" in told["detail"] + told["remedy"]
