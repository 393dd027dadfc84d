"""What the log tells of a fault: where it is, never what the exception says."""

import asyncio
import gc
import logging

import pytest

from agent import daemon, telemetry

NEEDLE = "what a user wrote 5f1d"


@pytest.fixture
def restored():
    """Put back afterwards how logging was configured."""
    root, log = logging.getLogger(), telemetry.LOG
    before = (root.handlers[:], log.handlers[:], log.propagate, log.level)
    yield
    root.handlers[:], log.handlers[:], log.propagate = before[:3]
    log.setLevel(before[3])


def fault():
    try:
        {}[NEEDLE]
    except KeyError as error:
        raise ValueError(f"it quotes {NEEDLE}") from error


def test_the_message_of_an_exception_is_not_logged_its_kind_and_place_are(restored, capsys):
    telemetry.configure_logging()
    try:
        fault()
    except ValueError:
        telemetry.LOG.exception("request %s met a fault", "r1")
        logging.getLogger("some.library").exception("it said %s\nand more of %s", "this", NEEDLE)
    told = capsys.readouterr().err
    assert "request r1 met a fault" in told
    assert "some.library: it said this\n" in told
    assert told.count("\nValueError\n") == 2
    assert told.count("in fault") == 2
    assert NEEDLE not in told


def test_nor_is_that_of_a_task_that_nobody_awaits(restored, capsys):
    telemetry.configure_logging()

    async def run():
        asyncio.create_task(lost())  # noqa: RUF006 - on purpose
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def lost():
        fault()

    asyncio.run(run())
    gc.collect()
    told = capsys.readouterr().err
    assert "asyncio: Task exception was never retrieved" in told
    assert NEEDLE not in told


def test_what_runs_beside_the_server_ends_without_its_message_in_the_log(caplog):
    async def work():
        fault()

    async def both():
        async with daemon._task(work()):
            await asyncio.sleep(0)

    asyncio.run(both())
    assert "background work has ended: unexpected ValueError" in caplog.text
    assert "in fault" in caplog.text
    assert NEEDLE not in caplog.text
