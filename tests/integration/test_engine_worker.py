"""The real worker process, on runtimes without weights."""

import asyncio
import json
import os
import platform
import signal
import sys

import msgspec
import pytest
from fakes import weightless_worker
from fakes.fake_runtime import expected_answer

from agent.engine import confinement, frames
from agent.engine.runtime import ModelUnloadable
from agent.engine.worker_process import Lost, WorkerProcess
from agent.types import FailureKind, Message, ModelFile, Sampling

MODEL = ModelFile(name="m", path="", sha256="0" * 64, context_tokens=64)


def order(**changes):
    given = {"model": MODEL, "context_tokens": 64, "parallel": 2, "waiting_line": 2, "threads": 1, "confine": True}
    return frames.Load(**(given | changes))


def ask(text, **sampling):
    return frames.Generate(id=0, messages=(Message("user", text),), sampling=Sampling(**sampling))


async def whole(inbox):
    text = ""
    while True:
        event = await inbox.get()
        text += event.text
        if isinstance(event, frames.Ended):
            return text, event


@pytest.fixture
async def worker():
    worker = await WorkerProcess.spawn(weightless_worker.COMMAND)
    yield worker
    await worker.close(5)


async def test_no_child_is_left_by_a_cancelled_end(worker):
    await worker.load(order(), 30)
    os.kill(worker.pid, signal.SIGSTOP)  # it will not leave by itself
    ending = asyncio.create_task(worker.close(60))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.wait([ending])
    assert ending.cancelled()
    assert worker.lost.done()


async def test_requests_share_the_worker_without_mixing(worker):
    ready = await worker.load(order(parallel=4), 30)
    assert ready.runtime == "fake"
    prompts = ["hello", "world", "good day", "stop here"]
    inboxes = [worker.submit(ask(prompt))[1] for prompt in prompts]
    for prompt, inbox in zip(prompts, inboxes, strict=True):
        text, ended = await whole(inbox)
        assert (text, ended.finish_reason) == expected_answer(prompt.encode())


async def test_a_cancel_is_confirmed_and_a_full_line_is_busy(worker):
    await worker.load(order(parallel=1, waiting_line=0), 30)
    _, refused = worker.submit(ask("x" * 70))
    assert (await whole(refused))[1].failure.kind is FailureKind.CONTEXT_OVERFLOW
    _, inbox = worker.submit(ask("good day"))
    assert (await whole(inbox))[1].failure is None


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter is for these processors")
async def test_a_confined_worker_can_do_none_of_this():
    worker = await WorkerProcess.spawn(weightless_worker.PROBE_COMMAND)
    with pytest.raises(Lost) as caught:
        await worker.load(order(), 30)
    await worker.close(5)
    found = json.loads(str(caught.value).partition("cannot load the model: ")[2].partition("; last words")[0])
    assert found.pop("thread") == "started"
    assert found.pop("read a file") == "True"
    assert found.pop("core") == "(0, 0)"
    assert "NoNewPrivs:\t1" in found["status"]
    assert "Seccomp:\t2" in found.pop("status")
    assert found == dict.fromkeys(weightless_worker.attempts(), "EPERM")
    assert "a library's printf" in caught.value.last_words


async def test_without_confinement_the_same_attempts_are_possible():
    # Shows that the test above fails for a worker that is not locked in.
    worker = await WorkerProcess.spawn(weightless_worker.PROBE_COMMAND)
    # Only what does no harm: a fork or an execve would really happen.
    harmless = msgspec.structs.replace(MODEL, path="socket,open for writing")
    with pytest.raises(Lost) as caught:
        await worker.load(order(confine=False, model=harmless), 30)
    await worker.close(5)
    assert '"socket":"done","open for writing":"done"' in str(caught.value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_well_formed(machine):
    program = confinement._program(confinement._MACHINES[machine])
    instructions = [program[at : at + 8] for at in range(0, len(program), 8)]
    assert len(instructions) < 4096
    for at, instruction in enumerate(instructions):
        if instruction[0] & 7 == 5:  # a jump stays inside
            assert at + 1 + max(instruction[2], instruction[3]) < len(instructions)
    assert instructions[-1][0] == 0x06


def test_a_kernel_that_refuses_the_filter_is_named(monkeypatch):
    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(confinement, "_limit", lambda *_: None)
    monkeypatch.setattr(confinement, "_install", refused)
    with pytest.raises(ModelUnloadable, match=r"cannot lock itself in: .*Invalid argument; see engine\.confine"):
        confinement.confine()


async def test_a_cancel_while_a_lost_worker_is_reaped_leaves_its_loss_to_be_told(worker, monkeypatch):
    killed = asyncio.Event()
    monkeypatch.setattr(worker, "kill", lambda _reason: killed.set())
    loading = asyncio.create_task(worker.load(order(), 0))
    await killed.wait()
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not worker.lost.done()


async def test_commands_that_are_no_frames_end_the_worker():
    child = await asyncio.create_subprocess_exec(
        *weightless_worker.COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await child.communicate(b"GET / HTTP/1.1\r\n\r\n")
    assert child.returncode not in (0, None)
    assert b"FrameError" in stderr


async def test_no_command_at_all_is_an_order_to_leave():
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        weightless_worker.PROGRAM,
        "fake",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate(b"")
    (hello,) = frames.event_reader().feed(out)
    assert hello == frames.Hello(frames.PROTOCOL, child.pid)
