"""A task that is removed while no daemon runs leaves nothing behind."""

import asyncio
from types import SimpleNamespace

from fakes import storage_values as values
from fakes.command_line import outrider
from fakes.storage_values import NOW

from agent.records import Feedback, FeedbackOrigin, Verdict
from agent.storage import open_storage


async def learned(data_dir):
    storage = await open_storage(data_dir, values.QUEUE, values.KEEP, now_ms=NOW, uptime=None)
    try:
        return await storage.tasks.all(), await storage.feedback.list()
    finally:
        await storage.close()


async def learn(data_dir):
    storage = await open_storage(data_dir, values.QUEUE, values.KEEP, now_ms=NOW, uptime=None)
    try:
        await storage.tasks.put_head("mail", b"head", now_ms=NOW)
        await storage.tasks.put_calibration("mail", "c1", b"calibration", now_ms=NOW)
        await storage.tasks.put_monitors({"mail": b"monitor", "other": b"monitor"}, broken=(), now_ms=NOW)
        said = Feedback(
            id="f1", request_id="r1", task="mail", origin=FeedbackOrigin.CALLER, verdict=Verdict.APPROVED, right=True,
            served=True, propensity=None, created_at_ms=NOW,
        )  # fmt: skip
        await storage.feedback.put(said)
    finally:
        await storage.close()


def test_what_was_learned_goes_with_its_task(tmp_path):
    data_dir = values.prepared_dir(tmp_path)
    asyncio.run(learn(data_dir))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mail.toml").write_text('labels = ["a", "b"]\n')
    config = tmp_path / "outrider.toml"
    config.write_text(f'data_dir = "{data_dir}"\n')
    outrider(SimpleNamespace(config=config), "tasks", "rm", "mail", "--yes")
    found, feedback = asyncio.run(learned(data_dir))
    assert (found.heads, found.calibrations, found.monitors, feedback) == ((), (), (b"monitor",), [])
    assert not (tmp_path / "tasks" / "mail.toml").exists()
