"""Rounds: the contestants take turns, the order changes with each round, and every figure is kept."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cells import Cell
from benchmarks.contestants import ROOT, Field
from benchmarks.samples import Figures, warm_up

QUIET_CORES = 0.3
QUIET_SPAN_S = 0.15
QUIET_PATIENCE_S = 3.0

Samples = dict[str, list[Figures]]  # by contestant, in the order of the rounds


class Bench:
    """Runs cells. Contestants stay alive between them."""

    def __init__(self, field: Field, tell: Callable[[str], None]) -> None:
        self._field = field
        self._tell = tell
        self._warm: set[str] = set()
        self.disturbed = 0  # rounds that began while other programs were at work
        self.longest_s = 0.0  # round
        self._run = f"{time.time_ns():x}"  # part of all prompts, so that no earlier run has cached them

    def measure(self, cell: Cell, rounds: int, until: float = float("inf")) -> Samples:
        """Return the figures of ``rounds`` rounds, or of fewer when the monotonic clock reaches ``until``.

        Only whole rounds count. Raises RuntimeError, Refused or OSError when a contestant fails.
        """
        self.disturbed, self.longest_s = 0, 0.0
        for side in cell.sides:
            if side not in self._warm:
                warm_up(self._field, side)
                self._warm.add(side)
        found: Samples = {side: [] for side in cell.sides}
        with spinning() if cell.busy else contextlib.nullcontext():
            for number in range(rounds * cell.repeat):
                if not cell.busy and not self._quiet(until):
                    self.disturbed += 1
                begun = time.monotonic()
                if begun + self.longest_s > until and number:
                    self._tell(f"{cell.name}: the time is used up after {number} of {rounds * cell.repeat}")
                    break
                key = f"{self._run} {cell.name} {number}"
                figures = {side: cell.sample(self._field, side, key) for side in _order(cell.sides, number)}
                for side, figure in figures.items():
                    found[side].append(figure)
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
        return found

    def _quiet(self, until: float) -> bool:
        """Wait a little for other programs to rest; return whether they do."""
        patience = min(until, time.monotonic() + QUIET_PATIENCE_S)
        while (busy := busy_cores()) > QUIET_CORES:
            if time.monotonic() > patience:
                self._tell(f"other programs use {busy:.1f} cores")
                return False
        return True


def busy_cores() -> float:
    """Return how many cores are at work in the next moment. The contestants are idle between rounds."""

    def spent() -> float:
        times = psutil.cpu_times()
        return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))

    before, begun = spent(), time.monotonic()
    time.sleep(QUIET_SPAN_S)
    return (spent() - before) / (time.monotonic() - begun)


def _order(sides: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Return another order for each round, so that everybody is first, and follows everybody, equally often."""
    at = number // 2 % len(sides)
    turned = sides[at:] + sides[:at]
    return tuple(reversed(turned)) if number % 2 else turned


@contextlib.contextmanager
def spinning() -> Iterator[None]:
    """Keep every core busy with a process that does nothing but spin."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        time.sleep(1.0)  # until the servers can have seen it
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def append(path: Path, cell: Cell, samples: Samples, disturbed: int = 0) -> None:
    """Add what was measured to a file of JSON lines."""
    line: dict[str, Any] = {"cell": cell.name, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    line |= {"commit": _commit(), "disturbed": disturbed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as record:
        record.write(json.dumps(line | {"samples": samples}) + "\n")


def read(path: Path) -> tuple[dict[str, Samples], dict[str, Any]]:
    """Return the figures by cell, pieces of one cell joined, and what is known of the run.

    Raises ValueError, with the line's number, on anything but such lines.
    """
    found: dict[str, Samples] = {}
    about: dict[str, Any] = {"from": None, "to": None, "commits": [], "disturbed": 0}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            for side, figures in line["samples"].items():
                found.setdefault(line["cell"], {}).setdefault(side, []).extend(figures)
            about["disturbed"] += line["disturbed"]
            about["from"], about["to"] = about["from"] or line["at"], line["at"]
            if line["commit"] not in about["commits"]:
                about["commits"].append(line["commit"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: no record of a measurement ({type(error).__name__})") from error
    return found, about


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"
