"""What a task or a caller's key says is asked again when bytes are about to leave."""

import pytest
from fakes.dispatching import ended, now_ms, queue_row, row_until, running, target

from agent.egress_settings import KeySettings
from agent.policy import PresentPolicy
from agent.records import EscalationState, RequestState
from agent.task_folder import TaskFolder
from agent.types import EgressPolicy

TEXT = "mail bob@example.org about it"


def says(folder, egress, key=None):
    """Have the task mail, and the caller desk, say this now."""
    line = f'egress = "{egress}"\n' if egress else ""
    (folder / "mail.toml").write_text(f'name = "mail"\nlabels = ["a", "b"]\n{line}')
    keys = [KeySettings(name="desk", egress=EgressPolicy(key))] if key else []
    return PresentPolicy(TaskFolder(folder), keys).told


@pytest.mark.parametrize("fields", [{"task": "mail"}, {"key": "desk"}])
async def test_what_was_tightened_while_a_row_waited_holds_it_and_no_release_overrules_never(
    storage, cloud, tmp_path, fields
):
    record = await queue_row(storage, cloud, TEXT, **fields)
    async with running(storage, target(cloud), told_now=says(tmp_path, "never", "never")) as dispatcher:
        row = await row_until(storage, record, lambda row: row.state is EscalationState.AWAITING_APPROVAL)
        assert row.reason == "policy_tightened"
        known = {"target": "cloud", "fingerprint": target(cloud).fingerprint, "now_ms": now_ms()}
        assert await storage.outbox.release([record.id], **known) == 1
        dispatcher.wake()
        assert (await ended(storage, record)).state is RequestState.UNRESOLVED
        assert (await storage.outbox.get(record.id)).last_error == "not sent: its policy is never"
    assert cloud.chats == []


async def test_redact_now_means_without_the_values(storage, cloud, tmp_path):
    record = await queue_row(storage, cloud, TEXT, task="mail")
    async with running(storage, target(cloud), told_now=says(tmp_path, "redact")):
        assert (await ended(storage, record)).state is RequestState.RESOLVED
    assert cloud.chats[0].last_user_text == "mail [EMAIL_1] about it"
    (line,) = await storage.egress_log.list()
    assert (line.policy, line.redactions) == ("redact", {"EMAIL": 1})


@pytest.mark.parametrize("looser", [None, "allow"])
async def test_nothing_is_loosened(storage, cloud, tmp_path, looser):
    strict = {"task": "mail", "key": "desk", "egress": EgressPolicy.REDACT}
    record = await queue_row(storage, cloud, TEXT, **strict)
    async with running(storage, target(cloud), told_now=says(tmp_path, looser, "allow")):
        await ended(storage, record)
    assert "bob" not in cloud.chats[0].last_user_text


async def test_a_task_that_is_gone_leaves_its_rows_as_accepted_one_that_cannot_be_read_holds_them(
    storage, cloud, tmp_path
):
    told = says(tmp_path, "allow")
    (tmp_path / "mail.toml").unlink()
    (tmp_path / "broken.toml").write_text("name = ")
    gone = await queue_row(storage, cloud, "gone", task="mail")
    broken = await queue_row(storage, cloud, "broken", task="broken")
    async with running(storage, target(cloud), told_now=told):
        assert (await ended(storage, gone)).state is RequestState.RESOLVED
        await row_until(storage, broken, lambda row: row.state is EscalationState.AWAITING_APPROVAL)
    assert [chat.last_user_text for chat in cloud.chats] == ["gone"]
