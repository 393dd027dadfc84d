"""Long work waits while the battery is low, in the children that do it, and goes on by itself."""

import subprocess
import sys
import threading

import msgspec
import psutil
import pytest
from fakes import tiny_gguf

from agent import executable
from agent.device import PowerState
from agent.models.quantizing import Wish, quantize
from agent.models.recipes.job import Job
from agent.models.store import open_store
from agent.strain import hold_children_while_strained

LOW, FULL = PowerState(battery_percent=12.0, on_battery=True), PowerState()
CHILD = """
import sys
import psutil
psutil._psplatform.POWER_SUPPLY_PATH = {battery!r}
from agent import strain
from agent.models import recipes
from agent.models.recipes import worker
worker.LOOK_EVERY_S = strain.LOOK_EVERY_S = 0.02
def make(job, tell):
    import subprocess
    from agent.models.recipes.job import Progress
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    tell(Progress(step=str(child.pid), done=0, total=1))
    child.wait()
recipes.RECIPES["program"] = "__main__:make"
sys.exit(worker.main([]))
"""


@pytest.fixture
def battery(tmp_path):
    """The kernel's files of a laptop that is unplugged."""
    folder = tmp_path / "power_supply" / "BAT0"
    folder.mkdir(parents=True)
    (folder / "capacity").write_text("12\n")
    (folder / "status").write_text("Discharging\n")
    return folder / "capacity"


def charge(capacity, percent):
    """Let the kernel's file say something else, at once."""
    fresh = capacity.with_name("fresh")
    fresh.write_text(f"{percent}\n")
    fresh.replace(capacity)


def command_of(battery):
    return [sys.executable, "-c", CHILD.format(battery=str(battery.parents[1]))]


@pytest.mark.skipif(not hasattr(psutil, "sensors_battery"), reason="psutil reads no battery on this system")
def test_quantize_waits_for_the_battery_and_says_so(tmp_path, battery, monkeypatch):
    monkeypatch.setattr(executable, "command", lambda *_: command_of(battery))
    seen = []

    def follow(progress):
        seen.append(progress.step)
        if progress.step.startswith("paused"):
            charge(battery, 80)

    source = tiny_gguf.write(tmp_path / "Tiny F16.gguf")
    wish = Wish(source=str(source), recipe="gguf-q8_0", importance="none")
    outcome = quantize(open_store(tmp_path / "data"), wish, follow)
    assert outcome.model.bytes
    assert seen[:3] == ["quantizing", "paused: the battery is at 12 %", "quantizing"]
    assert seen.count("paused: the battery is at 12 %") == 1


def test_a_program_that_cannot_be_asked_is_suspended_and_resumed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        states, told = [LOW, LOW, FULL], []

        def tell(reason):
            told.append((reason, until_stopped(child.pid)))

        hold_children_while_strained(tell, look=lambda: states.pop(0), sleep=lambda _: None)
        child.communicate(b"\n", timeout=30)
        assert child.returncode == 0
    assert told == [("the battery is at 12 %", True)]
    hold_children_while_strained(told.append, look=lambda: LOW)  # nothing to suspend, nothing to wait for
    assert len(told) == 1


@pytest.mark.skipif(not hasattr(psutil, "sensors_battery"), reason="psutil reads no battery on this system")
def test_a_suspended_program_ends_with_the_one_who_asked(battery):
    job = Job(recipe="program", source="", folder="", output="", threads=1)
    charge(battery, 80)
    with subprocess.Popen(command_of(battery), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        worker.stdin.flush()
        program = psutil.Process(int(msgspec.json.decode(worker.stdout.readline())["step"]))
        charge(battery, 12)
        assert msgspec.json.decode(worker.stdout.readline())["step"] == "paused: the battery is at 12 %"
        assert until_stopped(program.pid)
        worker.stdin.close()
        assert worker.wait(30) == 1
    _, alive = psutil.wait_procs([program], timeout=30)
    assert not alive


def until_stopped(pid):
    """Wait until the kernel has suspended a process, for half a minute at most."""
    waiting = threading.Event()
    for _ in range(3000):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return True
        waiting.wait(0.01)
    return False
