"""The profile ``phone`` inside two gibibytes: an answer comes, and what does not fit is refused with the figures."""

import asyncio

import msgspec
import psutil
import pytest
from fakes.daemon_process import DaemonProcess

from agent import device, executable
from agent.engine.supervisor import EnginePool
from agent.errors import EngineFailed
from agent.evaluation.measuring import engine_for, engine_values
from agent.models.profiles import PROFILES
from agent.settings import EngineSettings
from agent.types import ModelFile

CEILING = 2 << 30
LIMIT = ("prlimit", f"--as={CEILING}", "--")
PHONE = PROFILES["phone"]


@pytest.mark.model
def test_a_daemon_with_two_gibibytes_of_address_space_answers(tmp_path, capsys):
    engine = "".join(f"{key} = {value}\n" for key, value in engine_values(PHONE, device.profile()).items())
    daemon = DaemonProcess(tmp_path / "phone", f"[engine]\n{engine}", command_prefix=LIMIT, real=True).start()
    answer = daemon.chat("What is the capital of France?").json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    (worker,) = psutil.Process(daemon.process.pid).children()
    assert worker.rlimit(psutil.RLIMIT_AS)[0] == CEILING
    resident = {
        name: psutil.Process(pid).memory_info().rss
        for name, pid in (("daemon", daemon.process.pid), ("worker", worker.pid))
    }
    assert sum(resident.values()) < CEILING
    with capsys.disabled():
        print({name: f"{count >> 20} MiB resident" for name, count in resident.items()})
    assert daemon.stop() == 0


def refused(file, engine, *prefix):
    async def load():
        pool = EnginePool(engine, lambda _: file, worker_command=[*prefix, *executable.command("engine-worker")])
        try:
            await pool.make_ready(file.name)
        finally:
            await pool.stop(0)

    with pytest.raises(EngineFailed) as caught:
        asyncio.run(load())
    return str(caught.value)


@pytest.fixture
def large(tmp_path):
    """A file of three gibibytes that takes no space; what is in it would be refused for another reason."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    return ModelFile(name="large", path=str(path), sha256="0" * 64, context_tokens=2048)


def test_what_exceeds_the_ceiling_is_refused_before_it_is_loaded(large):
    engine = engine_for(EngineSettings(), PHONE)
    assert engine.memory_mib == CEILING >> 20
    told = refused(large, engine)
    assert "the weights of large take 3072 MiB" in told
    assert "of the 2048 MiB of engine.memory_mib" in told


def test_what_exceeds_the_limit_of_the_process_is_refused_before_it_is_loaded(large):
    told = refused(large, msgspec.structs.replace(EngineSettings(), context_tokens=2048), *LIMIT)
    assert "the weights of large take 3072 MiB" in told
    assert "MiB are free" in told
