"""The pool against real child processes that behave as badly as their prompt says."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time

import psutil
import pytest
from fakes import fake_worker

from agent.engine.supervisor import EnginePool, Patience, WorkerState
from agent.engine.worker_process import HUGE_PAGES, worker_environment
from agent.errors import ModelNotFound, ModelRejected
from agent.settings import EngineSettings
from agent.types import Delta, FailureKind, Generation, InferenceRequest, Message, ModelFile, Sampling

QUICK = Patience(backoff_base_s=0.01, backoff_cap_s=0.05, stuck_s=0.2, leave_s=5.0)


def resolve(name):
    if name == "unknown":
        raise ModelNotFound("no model named unknown; known are m")
    return ModelFile(name=name, path="/none", sha256="d1" * 32, context_tokens=2048)


@contextlib.asynccontextmanager
async def pool_of(*switches, preload=("m",), command=None, find=resolve, **settings):
    pool = EnginePool(
        EngineSettings(**settings), find, worker_command=command or [*fake_worker.COMMAND, *switches], patience=QUICK
    )
    await pool.start(preload)
    try:
        yield pool
    finally:
        await pool.stop(0)


def request(text, model="m", deadline_in_s=None, **sampling):
    now = time.time_ns() // 1_000_000
    return InferenceRequest(
        id="r",
        model=model,
        messages=(Message("user", text),),
        sampling=Sampling(**sampling),
        received_at_ms=now,
        deadline_at_ms=None if deadline_in_s is None else now + int(deadline_in_s * 1000),
    )


async def ask(pool, text, **given):
    """Return the Generation; check what holds of every run."""
    *deltas, last = [event async for event in pool.generate(request(text, **given))]
    assert isinstance(last, Generation)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert last.text == "".join(delta.text for delta in deltas)
    assert last.tokens == tuple(token for delta in deltas for token in delta.tokens)
    return last


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


async def test_an_answer_with_its_figures():
    async with pool_of() as pool:
        answer = await ask(pool, "hello there")
        assert (answer.text, answer.finish_reason, answer.failure) == ("echo: hello there", "stop", None)
        assert answer.model_digest == "d1" * 32
        assert answer.first_token_ms <= answer.duration_ms
        status = pool.status()["m"]
        assert (status.state, status.context_tokens, status.active) == (WorkerState.READY, 2048, 0)
        assert status.rss_bytes > 0


async def test_many_at_once_get_their_own_answers():
    async with pool_of() as pool:
        answers = await asyncio.gather(*(ask(pool, f"number {n}") for n in range(30)))
        assert [answer.text for answer in answers] == [f"echo: number {n}" for n in range(30)]


async def test_a_crash_in_flight_says_why_and_the_next_request_works():
    async with pool_of() as pool:
        answer = await ask(pool, "crash please")
        assert answer.failure.kind is FailureKind.CRASH
        assert "SIGSEGV" in answer.failure.message
        assert "GGML_ASSERT(answer != NULL) failed" in answer.failure.message
        assert answer.text == "This answer will not"
        assert answer.finish_reason is None
        assert (await ask(pool, "hello")).text == "echo: hello"
        status = pool.status()["m"]
        assert status.crashes == 1
        assert "GGML_ASSERT" in status.last_error


async def test_a_crash_takes_all_that_run_and_none_is_asked_twice():
    async with pool_of(crashes_to_quarantine=10) as pool:
        slow = [asyncio.create_task(ask(pool, f"slow {n}")) for n in range(3)]
        await until(lambda: pool.status()["m"].active == 3)
        await ask(pool, "crash")
        assert {(await one).failure.kind for one in slow} == {FailureKind.CRASH}
        assert (await ask(pool, "hello")).failure is None
        assert pool.status()["m"].crashes == 1


async def test_a_fault_of_the_native_layer_ends_the_worker_which_says_why():
    from fakes import weightless_worker

    async with pool_of(command=weightless_worker.COMMAND) as pool:
        answer = await ask(pool, "BROKEN")
        assert answer.failure.kind is FailureKind.CRASH
        assert "RuntimeBroken: llama_decode returned -3" in answer.failure.message
        assert (await ask(pool, "hello")).failure is None
        assert pool.status()["m"].crashes == 1
        assert "llama_decode returned -3" in pool.status()["m"].last_error


async def test_bytes_that_are_no_frames_end_the_worker():
    async with pool_of() as pool:
        answer = await ask(pool, "garbage")
        assert answer.failure.kind is FailureKind.CRASH
        assert "not frames" in answer.failure.message
        assert (await ask(pool, "hello")).failure is None


async def test_a_model_that_crashes_again_and_again_is_quarantined():
    async with pool_of(crashes_to_quarantine=3) as pool:
        for _ in range(3):
            assert (await ask(pool, "crash")).failure.kind is FailureKind.CRASH
        answer = await ask(pool, "hello")
        assert answer.failure.kind is FailureKind.QUARANTINED
        assert pool.status()["m"].state is WorkerState.QUARANTINED
        # Another name for the same file is no way around it.
        assert (await ask(pool, "hello", model="alias")).failure.kind is FailureKind.QUARANTINED


async def test_crashes_outside_the_window_do_not_count():
    async with pool_of(crashes_to_quarantine=2, crash_window_s=0.001) as pool:
        for _ in range(4):
            await ask(pool, "crash")
        assert (await ask(pool, "hello")).failure is None


@pytest.mark.parametrize(
    ("switches", "timeout_s", "reason"),
    [
        (["--hang-at-load"], 0.3, "did not load the model within"),
        (["--silent"], 0.3, "did not load the model within"),
        # These say it themselves, however long a child takes to start here.
        (["--crash-at-load"], 60, "cannot allocate 99 GiB"),
        (["--fail-load"], 60, "the file is not a model"),
        (["--protocol", "99"], 60, "speaks protocol 99"),
    ],
)
async def test_a_worker_that_does_not_get_ready(switches, timeout_s, reason):
    async with pool_of(*switches, load_timeout_s=timeout_s, crashes_to_quarantine=1) as pool:
        answer = await ask(pool, "hello")
        assert answer.failure.kind is FailureKind.QUARANTINED
        assert reason in pool.status()["m"].last_error


async def test_a_program_that_cannot_be_started():
    async with pool_of(command=["/does/not/exist"], crashes_to_quarantine=2) as pool:
        answer = await ask(pool, "hello")
        assert answer.failure.kind is FailureKind.QUARANTINED
        assert "cannot be started" in answer.failure.message


async def test_a_deadline_ends_the_wait_and_the_worker_lives_on():
    async with pool_of() as pool:
        await ask(pool, "warm")
        pid = pool.status()["m"].pid
        answer = await ask(pool, "hang", deadline_in_s=0.05)
        assert answer.failure.kind is FailureKind.TIMEOUT
        late = await ask(pool, "hello", deadline_in_s=-1)
        assert late.failure.kind is FailureKind.TIMEOUT
        assert pool.status()["m"].pid == pid


async def test_a_deadline_counts_while_the_model_loads():
    async with pool_of("--hang-at-load") as pool:
        assert (await ask(pool, "hello", deadline_in_s=0.05)).failure.kind is FailureKind.TIMEOUT


async def test_closing_the_iterator_cancels():
    async with pool_of(parallel=1, waiting_line=0) as pool:
        events = pool.generate(request("slow"))
        await anext(events)
        assert pool.status()["m"].active == 1
        await events.aclose()
        assert pool.status()["m"].active == 0
        assert (await ask(pool, "hello")).text == "echo: hello"


async def test_a_task_that_is_cancelled_cancels():
    async with pool_of() as pool:
        task = asyncio.create_task(ask(pool, "hang"))
        await until(lambda: pool.status()["m"].active == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.status()["m"].active == 0


async def test_a_worker_that_does_not_confirm_a_cancel_is_killed():
    async with pool_of() as pool:
        await ask(pool, "warm")
        assert (await ask(pool, "stuck", deadline_in_s=0.05)).failure.kind is FailureKind.TIMEOUT
        await until(lambda: pool.status()["m"].crashes == 1)
        assert "did not confirm a cancel" in pool.status()["m"].last_error
        assert (await ask(pool, "hello")).failure is None


async def test_the_waiting_line_is_bounded():
    async with pool_of(parallel=1, waiting_line=1) as pool:
        held = [asyncio.create_task(ask(pool, "hang", deadline_in_s=20)) for _ in range(2)]
        await until(lambda: pool.status()["m"].waiting == 1)
        assert (await ask(pool, "hello")).failure.kind is FailureKind.BUSY
        for task in held:
            task.cancel()
        await asyncio.wait(held)
        assert (await ask(pool, "hello")).failure is None


async def test_failures_of_the_runtime_pass_through():
    async with pool_of() as pool:
        kinds = [(await ask(pool, word)).failure.kind for word in ("busy", "overflow", "reject")]
        assert kinds == [FailureKind.BUSY, FailureKind.CONTEXT_OVERFLOW, FailureKind.REJECTED]


async def test_a_model_that_nobody_uses_leaves_the_memory_and_comes_back():
    async with pool_of(idle_unload_s=0.05) as pool:
        assert (await ask(pool, "hello")).text == "echo: hello"
        pid = pool.status()["m"].pid
        await until(lambda: pool.status()["m"].state is WorkerState.IDLE)
        await until(lambda: not psutil.pid_exists(pid))
        status = pool.status()["m"]
        assert (status.crashes, status.pid) == (0, None)
        assert (await ask(pool, "hello again")).text == "echo: hello again"
        assert pool.status()["m"].pid != pid


async def test_what_comes_back_is_looked_at_again():
    """Its file may have been altered while it was out of the memory."""
    digests = iter(["d1" * 32, "d2" * 32])

    def find(name):
        if digest := next(digests, None):
            return ModelFile(name=name, path="/none", sha256=digest, context_tokens=2048)
        raise ModelRejected("its SHA-256 is another one: damaged or altered")

    async with pool_of(idle_unload_s=0.001, find=find) as pool:
        assert (await ask(pool, "hello")).model_digest == "d1" * 32
        await until(lambda: pool.status()["m"].state is WorkerState.IDLE)
        assert (await ask(pool, "hello")).model_digest == "d2" * 32
        await until(lambda: pool.status()["m"].state is WorkerState.IDLE)
        failure = (await ask(pool, "hello")).failure
        assert "damaged or altered" in failure.message


async def test_a_model_in_use_does_not_leave():
    async with pool_of(idle_unload_s=0.05) as pool:
        assert (await ask(pool, "slow")).finish_reason == "stop"
        assert pool.status()["m"].crashes == 0


async def test_many_comings_and_goings_lose_nothing():
    async with pool_of(idle_unload_s=0.001, crashes_to_quarantine=1) as pool:
        for number in range(15):
            answers = await asyncio.gather(*(ask(pool, f"{number} {n}") for n in range(3)))
            assert [answer.text for answer in answers] == [f"echo: {number} {n}" for n in range(3)]
            await asyncio.sleep(0.0005 * (number % 4))
        assert pool.status()["m"].crashes == 0


async def test_an_idle_model_can_be_stopped():
    async with pool_of(idle_unload_s=0.001) as pool:
        await ask(pool, "hello")
        await until(lambda: pool.status()["m"].state is WorkerState.IDLE)
        await pool.stop(1)
        assert (await ask(pool, "hello")).failure.kind is FailureKind.CRASH


async def test_a_model_whose_file_takes_long_to_verify_holds_up_no_other():
    begun, verified = threading.Event(), threading.Event()

    def find(name):
        if name == "large":
            begun.set()
            assert verified.wait(60)
        return resolve(name)

    async with pool_of(find=find) as pool:
        large = asyncio.create_task(ask(pool, "hello", model="large"))
        await until(begun.is_set)
        try:
            async with asyncio.timeout(10):
                assert (await ask(pool, "hello", model="other")).failure is None
        finally:
            verified.set()
        assert (await large).failure is None


async def test_an_unknown_model_is_a_failure_and_never_another_model():
    async with pool_of(preload=("unknown",)) as pool:
        assert (await ask(pool, "hello", model="unknown")).failure.kind is FailureKind.REJECTED
        assert "no model named unknown" in pool.status()["unknown"].last_error
        assert (await ask(pool, "hello")).failure is None


async def test_a_stop_lets_running_requests_finish():
    async with pool_of() as pool:
        task = asyncio.create_task(ask(pool, "slow"))
        await until(lambda: pool.status()["m"].active == 1)
        stop = asyncio.create_task(pool.stop(20))
        assert (await task).failure is None
        await stop
        assert (await ask(pool, "hello")).failure.kind is FailureKind.CRASH
        assert pool.status()["m"].state is WorkerState.STOPPED


async def test_a_stop_does_not_wait_for_ever_and_leaves_nothing_running():
    async with pool_of() as pool:
        task = asyncio.create_task(ask(pool, "stuck"))
        await until(lambda: pool.status()["m"].active == 1)
        pid = pool.status()["m"].pid
        await pool.stop(0.01)
        assert (await task).failure.kind is FailureKind.CRASH
        assert not psutil.pid_exists(pid)


async def test_a_worker_gets_no_secret_from_the_environment():
    kept = worker_environment(
        {"PATH": "/bin", "OPENAI_API_KEY": "k", "OUTRIDER_API_KEY": "k", "LC_ALL": "C", "FOO": "1"}
    )
    assert kept == {"PATH": "/bin", "LC_ALL": "C", **HUGE_PAGES}


async def test_a_worker_leaves_when_its_parent_is_killed(tmp_path):
    """The parent here is a process that starts the real worker and is then killed with -9."""
    from fakes import weightless_worker

    script = f"""
import subprocess, sys, time
child = subprocess.Popen({weightless_worker.COMMAND!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.read(1)
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    child = psutil.Process(int(await parent.stdout.readline()))
    assert child.is_running()
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await asyncio.to_thread(child.wait, 30)
    assert not psutil.pid_exists(child.pid)


async def test_signals_of_the_terminal_are_the_daemons_business():
    from fakes import weightless_worker

    async with pool_of(command=weightless_worker.COMMAND) as pool:
        assert (await ask(pool, "hello")).failure is None
        for name in (signal.SIGINT, signal.SIGTERM):
            os.kill(pool.status()["m"].pid, name)
        assert (await ask(pool, "hello")).failure is None
        assert pool.status()["m"].crashes == 0


async def test_the_parent_loads_no_native_library():
    script = (
        "import sys; import agent.engine.supervisor;"
        "print(sorted({'llama_cpp', 'numpy', 'jinja2', 'onnxruntime', 'agent.engine.worker'} & set(sys.modules)))"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert out.decode().strip() == "[]"
