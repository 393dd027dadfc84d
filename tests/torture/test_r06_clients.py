"""R6: eight clients enqueue as fast as they can, on this disk and on one whose every sync takes 10 ms."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from fakes import enqueuers
from fakes import storage_values as values
from fakes.preload import Faults
from fakes.storage_lives import REPO

CLIENTS = 8


def run(data, seconds, environment=None):
    command = [sys.executable, enqueuers.__file__, str(data), str(CLIENTS), str(seconds)]
    child = subprocess.run(
        command, cwd=REPO, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(child.stdout)


def tell(shown, told, least):
    times = told["times"]
    shown.did("clients, seconds", f"{CLIENTS}, {told['seconds']:.0f}")
    if least:
        shown.least("durable enqueues per second (two commits each)", told["rows"] / told["seconds"], least)
    else:
        shown.did("durable enqueues per second (two commits each)", f"{told['rows'] / told['seconds']:,.0f}")
    shown.did("median, p99", f"{statistics.median(times):.1f} ms, {statistics.quantiles(times, n=100)[98]:.1f} ms")
    shown.most("slowest", max(times), 250, "ms")
    shown.none("errors, among them 'locked'", told["errors"])
    shown.none("acknowledged and not counted", len(times) - told["rows"])


@pytest.mark.sizes(short=None, full={"seconds": 60, "patience_s": 300}, long={"seconds": 60, "patience_s": 300})
def test_on_this_disk(tmp_path, size, shown):
    """eight clients enqueue on this disk"""
    tell(shown, run(values.prepared_dir(tmp_path), size["seconds"]), 800)


@pytest.mark.sizes(short=None, full={"seconds": 60, "patience_s": 300}, long={"seconds": 60, "patience_s": 300})
def test_on_a_slow_disk(tmp_path, size, shown):
    """eight clients enqueue on a disk whose every sync takes 10 ms more"""
    data = values.prepared_dir(tmp_path)
    faults = Faults(data, tmp_path / "control")
    faults["sync_delay_us"] = 10_000
    told = run(data, size["seconds"], faults.environment)
    assert faults["seen"], "the library saw no call: it stands beside the program, not under it"
    tell(shown, told, None)
