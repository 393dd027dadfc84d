"""Profiles of the torture, and the record of what it showed.

``TORTURE`` is the profile: short (of `make test`), full (`make torture`) or long. A scenario says by its marker
``sizes`` what each asks of it, and is not run where it says nothing. ``ONLY=r5`` or ``ONLY=r5,r6`` picks scenarios.
Each adds what it measured to build/torture/PROFILE.json, in place of what an earlier run of it said.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from fakes.torture_record import Record, Scenario, table

PROFILE = os.environ.get("TORTURE") or "short"
ONLY = {name.strip().lower() for name in os.environ.get("ONLY", "").split(",") if name.strip()}
HERE = Path(__file__).parent
ENDED = pytest.StashKey[bool]()
RECORD = Record(HERE.parents[1] / "build" / "torture" / f"{PROFILE}.json", PROFILE)


def number(item: pytest.Item) -> str:
    """Return "r1" of test_r01_kills.py, or "leaks"."""
    found = re.match(r"test_r0*(\d+)_", item.path.name)
    return f"r{found.group(1)}" if found else "leaks"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gone = []
    for item in items:
        if item.path.parent != HERE:
            continue
        marker = item.get_closest_marker("sizes")
        size = marker.kwargs.get(PROFILE) if marker else None
        if size is None or (ONLY and number(item) not in ONLY):
            gone.append(item)
            continue
        item.add_marker(pytest.mark.torture)
        item.add_marker(pytest.mark.timeout(size.get("patience_s", 120)))
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if call.when == "call":
        item.stash[ENDED] = not report.failed
    return report


@pytest.fixture
def size(request: pytest.FixtureRequest) -> dict:
    """What this profile asks of the scenario."""
    return dict(request.node.get_closest_marker("sizes").kwargs[PROFILE])


@pytest.fixture
def shown(request: pytest.FixtureRequest):
    """Takes down what the scenario measured; what does not hold fails the test, after it is written down."""
    name = number(request.node)
    scenario = Scenario(name, request.node.name, (request.function.__doc__ or "").strip().splitlines()[0])
    yield scenario
    if not request.node.stash.get(ENDED, False):  # what follows was not looked at
        scenario.holds("the scenario ran to its end", held=False)
    RECORD.add(scenario)
    if PROFILE != "short":
        RECORD.save()
    missed = [f"{row.what}: {row.measured}, wanted {row.wanted}" for row in scenario.rows if not row.held]
    assert not missed, "; ".join(missed)


@pytest.fixture
def profile() -> str:
    return PROFILE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RECORD.added and PROFILE != "short":
        terminalreporter.write_sep("=", f"torture, {PROFILE}")
        terminalreporter.write_line(table(RECORD.load()))
        terminalreporter.write_line(f"written to {RECORD.path}")
