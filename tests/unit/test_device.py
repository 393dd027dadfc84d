"""The machine as it is, and limits that a container sets."""

from types import SimpleNamespace

import pytest

from agent import device


def test_this_machine():
    seen = device.profile()
    assert seen.logical_cores >= seen.physical_cores >= 1
    assert 0 < seen.usable_cores <= seen.logical_cores
    assert seen.memory_total >= seen.memory_available > 0
    assert 1 <= seen.decode_threads <= seen.physical_cores
    assert 0 < seen.memory_usable <= seen.memory_total


def group(tmp_path, path, **limits):
    folder = tmp_path / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in limits.items():
        (folder / name.replace("_", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ({}, {}, (None, None)),
        ({}, {"cpu_max": "max 100000", "memory_max": "max"}, (None, None)),
        ({}, {"cpu_max": "150000 100000", "memory_max": "1048576"}, (1.5, 1048576)),
        ({"memory_max": "4096", "cpu_max": "50000 100000"}, {"memory_max": "8192"}, (0.5, 4096)),
        ({}, {"cpu_max": "nonsense", "memory_max": ""}, (None, None)),
    ],
)
def test_limits_of_the_control_group_and_those_above(tmp_path, outer, inner, expected):
    group(tmp_path, "system.slice", **outer)
    group(tmp_path, "system.slice/outrider.service", **inner)
    own = tmp_path / "self"
    own.write_text("0::/system.slice/outrider.service\n")
    assert device._cgroup_limits(tmp_path, own) == expected


def test_no_control_groups(tmp_path):
    assert device._cgroup_limits(tmp_path, tmp_path / "absent") == (None, None)
    (tmp_path / "v1").write_text("4:memory:/user\n")
    assert device._cgroup_limits(tmp_path, tmp_path / "v1") == (None, None)


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (None, (None, False)),
        (SimpleNamespace(percent=80, power_plugged=True), (80.0, False)),
        (SimpleNamespace(percent=40, power_plugged=False), (40.0, True)),
        (SimpleNamespace(percent=40, power_plugged=None), (40.0, False)),
    ],
)
def test_battery(monkeypatch, battery, expected):
    monkeypatch.setattr(device.psutil, "sensors_battery", lambda: battery, raising=False)
    seen = device.profile()
    assert (seen.battery_percent, seen.on_battery) == expected
    assert device.on_battery() is expected[1]


def test_a_battery_that_cannot_be_read(monkeypatch):
    def fail():
        raise OSError("no data")

    monkeypatch.setattr(device.psutil, "sensors_battery", fail, raising=False)
    assert device.on_battery() is False
