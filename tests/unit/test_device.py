"""The machine as it is, and limits that a container sets."""

import os
import sys
from types import SimpleNamespace

import psutil
import pytest

from agent import device
from agent.cgroup_limits import cgroup_limits
from agent.cli import devices, machine_findings


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
        ({}, {}, (None, None, None)),
        ({}, {"cpu_max": "max 100000", "memory_max": "max"}, (None, None, None)),
        ({}, {"cpu_max": "150000 100000", "memory_max": "1048576"}, (1.5, 1048576, 1048576)),
        ({"memory_max": "4096", "cpu_max": "50000 100000"}, {"memory_max": "8192"}, (0.5, 4096, 4096)),
        ({}, {"cpu_max": "nonsense", "memory_max": ""}, (None, None, None)),
        ({}, {"memory_max": "8192", "memory_current": "3000"}, (None, 8192, 5192)),
        (
            {
                "memory_max": "9000",
                "memory_current": "8000",
                "memory_stat": "anon 1\nactive_file 500\ninactive_file 1500",
            },
            {"memory_max": "8192", "memory_current": "3000"},
            (None, 8192, 3000),
        ),
        ({}, {"memory_max": "4096", "memory_current": "5000"}, (None, 4096, 0)),
    ],
)
def test_limits_of_the_control_group_and_those_above(tmp_path, outer, inner, expected):
    group(tmp_path, "system.slice", **outer)
    group(tmp_path, "system.slice/outrider.service", **inner)
    own = tmp_path / "self"
    own.write_text("0::/system.slice/outrider.service\n")
    assert cgroup_limits(tmp_path, own) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Chip\nflags\t: fpu avx2 avx512f avx512_vnni\n", ("Chip", ("avx2", "avx512", "vnni"))),
        ("processor: 0\nFeatures: fp asimd asimddp i8mm\nModel: Board\n", ("Board", ("neon", "dotprod", "i8mm"))),
        ("model name: Chip\nflags: fpu\n\nmodel name: Other\nflags: avx2\n", ("Chip", ())),
    ],
)
def test_what_the_processor_can_do(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert device._processor(tmp_path / "cpuinfo") == expected


def test_a_limit_of_the_address_space_counts(monkeypatch):
    monkeypatch.setattr(device, "_address_space", lambda: (1 << 30, 1 << 29))
    seen = device.profile()
    assert (seen.memory_limit, seen.memory_usable) == (1 << 30, 1 << 29)


def test_the_devices_for_encoders_are_asked_in_a_child(monkeypatch):
    assert "for encoders: cpu by" in told_of("devices").detail
    broken = [sys.executable, "-c", "import sys; print('driver', file=sys.stderr); sys.exit(3)"]
    monkeypatch.setattr(devices.executable, "command", lambda *_: broken)
    assert devices.listed().problems == ("the devices cannot be listed (exit status 3): driver",)
    assert told_of("devices").detail == "for encoders: none"


def told_of(subject):
    return next(one for one in machine_findings.machine_findings() if one.subject == subject)


def test_no_control_groups(tmp_path):
    assert cgroup_limits(tmp_path, tmp_path / "absent") == (None, None, None)
    (tmp_path / "self").write_text("4:memory:/user\n3:cpu,cpuacct:/user\nno group\n")
    assert cgroup_limits(tmp_path, tmp_path / "self") == (None, None, None)


def group_v1(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.mark.parametrize("inside", ["user/app", ""], ids=["on a host", "in a container"])
def test_limits_of_control_groups_of_version_1(tmp_path, inside):
    own = tmp_path / "self"
    own.write_text("9:freezer:/\n4:memory:/user/app\n3:cpu,cpuacct:/user/app\n")
    stat = "cache 700\ntotal_inactive_file 100\ntotal_active_file 50\n"
    memory = {"memory_limit_in_bytes": "4096\n", "memory_usage_in_bytes": "1000\n", "memory_stat": stat}
    group_v1(tmp_path / "memory" / inside, **memory)
    group_v1(tmp_path / "cpu,cpuacct" / inside, cpu_cfs_quota_us="150000\n", cpu_cfs_period_us="100000\n")
    assert cgroup_limits(tmp_path, own) == (1.5, 4096, 4096 - 850)
    group_v1(tmp_path / "memory" / inside, memory_limit_in_bytes="9223372036854771712\n")
    group_v1(tmp_path / "cpu,cpuacct" / inside, cpu_cfs_quota_us="-1\n")
    assert cgroup_limits(tmp_path, own) == (None, None, None)


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


def sensor(current, high=None, critical=None):
    return SimpleNamespace(current=current, high=high, critical=critical)


@pytest.mark.parametrize(
    ("chips", "hottest", "strained"),
    [
        ({}, (None, None), False),
        ({"coretemp": [sensor(60, 80, 100), sensor(79, 80, 100)]}, (79, 80), False),
        ({"coretemp": [sensor(60, 80, 100), sensor(81, 80, 100)]}, (81, 80), True),
        ({"k10temp": [sensor(96)]}, (96, 95), True),
        ({"cpu_thermal": [sensor(84, None, 85)]}, (84, 85), False),
        ({"nvme": [sensor(99, 80, 90)]}, (None, None), False),
        ({"coretemp": [sensor(50, 0, 65_261)]}, (50, 95), False),
    ],
)
def test_heat_of_the_processor(monkeypatch, tmp_path, chips, hottest, strained):
    monkeypatch.setattr(device.psutil, "sensors_temperatures", lambda: chips, raising=False)
    monkeypatch.setattr(device.psutil, "sensors_battery", lambda: None, raising=False)
    seen = device.power_state(tmp_path)
    assert (seen.celsius, seen.hot_celsius) == hottest
    assert bool(seen.strain) is strained


@pytest.mark.parametrize("error", [OSError("no data"), ValueError("invalid literal for int()")])
def test_sensors_that_cannot_be_read(monkeypatch, tmp_path, error):
    def fail():
        raise error

    monkeypatch.setattr(device.psutil, "sensors_temperatures", fail, raising=False)
    monkeypatch.setattr(device.psutil, "sensors_battery", fail, raising=False)
    assert device.power_state(tmp_path) == device.PowerState()
    assert device.power_state(tmp_path / "absent").strain == ""


def test_thermal_zones_and_brakes_of_the_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(device.psutil, "sensors_temperatures", dict, raising=False)
    monkeypatch.setattr(device.psutil, "sensors_battery", lambda: None, raising=False)
    files = {
        "thermal_zone0/type": "cpu-thermal",
        "thermal_zone0/temp": "71000",
        "thermal_zone0/trip_point_0_type": "passive",
        "thermal_zone0/trip_point_0_temp": "75000",
        "thermal_zone0/trip_point_1_type": "critical",
        "thermal_zone0/trip_point_1_temp": "110000",
        "thermal_zone1/type": "battery",
        "thermal_zone1/temp": "99000",
        "thermal_zone1/trip_point_0_type": "passive",
        "thermal_zone1/trip_point_0_temp": "50000",
        "cooling_device0/type": "cpufreq-cpu0",
        "cooling_device0/cur_state": "0",
        "cooling_device1/type": "fan",
        "cooling_device1/cur_state": "3",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    seen = device.power_state(tmp_path)
    assert (seen.celsius, seen.hot_celsius, seen.strain) == (71, 75, "")
    (tmp_path / "thermal_zone0/temp").write_text("75500\n")
    assert device.power_state(tmp_path).strain == "the processor is at 76 °C"
    (tmp_path / "thermal_zone0/temp").write_text("60000\n")
    (tmp_path / "cooling_device0/cur_state").write_text("2\n")
    assert "slows the processor down" in device.power_state(tmp_path).strain


@pytest.mark.parametrize(
    ("percent", "plugged", "strain"),
    [(29, False, "the battery is at 29 %"), (30, False, ""), (5, True, ""), (5, None, "")],
)
def test_a_low_battery(monkeypatch, tmp_path, percent, plugged, strain):
    battery = SimpleNamespace(percent=percent, power_plugged=plugged)
    monkeypatch.setattr(device.psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(device.psutil, "sensors_temperatures", dict, raising=False)
    assert device.power_state(tmp_path).strain == strain


def test_a_policy_that_denies_proc_takes_nothing_but_precision(monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", "/proc/meminfo")

    seen = device.profile()
    monkeypatch.setattr(psutil, "virtual_memory", denied)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: seen.logical_cores if logical else denied())
    monkeypatch.setattr(os, "getloadavg", denied)
    found = device.profile()
    assert found.memory_total == pytest.approx(seen.memory_total, rel=0.05)
    assert 0 < found.memory_available <= found.memory_total
    assert found.physical_cores == found.logical_cores
    assert found.load_1min is None


def test_heat_that_nobody_may_look_at(monkeypatch, tmp_path):
    def denied(*_):
        raise PermissionError(13, "Permission denied", "/sys/class/thermal")

    monkeypatch.setattr(device.Path, "glob", denied)
    monkeypatch.setattr(device.psutil, "sensors_temperatures", dict, raising=False)
    assert not device.power_state(tmp_path).throttled
