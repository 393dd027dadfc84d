"""What torture scenarios measured: kept as JSON, told as a table in Markdown.

``python tests/fakes/torture_record.py FILE`` prints the table of a record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BUSY = 3.0  # load average on two cores above which figures of time say little


@dataclass(frozen=True)
class Row:
    """One figure: what was counted or timed, what is wanted of it, and whether it held."""

    what: str
    measured: str
    wanted: str
    held: bool


@dataclass
class Scenario:
    """One scenario in one run."""

    number: str
    test: str
    title: str
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    load: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def did(self, what: str, measured: object) -> None:
        """Take down how much was done; nothing is wanted of it."""
        self.rows.append(Row(what, str(measured), "", held=True))

    def none(self, what: str, found: object) -> None:
        """Take down something that must not have happened: a number, or a collection of cases."""
        count = found if isinstance(found, int) else len(found)
        if count and not isinstance(found, int):
            print(f"{what}: {list(found)[:5]}")
        self.rows.append(Row(what, str(count), "0", held=count == 0))

    def most(self, what: str, measured: float, limit: float, unit: str = "", *, judged: bool = True) -> None:
        """Take down a figure that must not be above ``limit``."""
        held = measured <= limit or not judged
        self.rows.append(Row(what, _figure(measured, unit), f"≤ {_figure(limit, unit)}", held=held))

    def least(self, what: str, measured: float, limit: float, unit: str = "", *, judged: bool = True) -> None:
        """Take down a figure that must not be below ``limit``."""
        held = measured >= limit or not judged
        self.rows.append(Row(what, _figure(measured, unit), f"≥ {_figure(limit, unit)}", held=held))

    def holds(self, what: str, held: object, measured: object = None) -> None:
        """Take down something that is so or is not."""
        said = ("yes" if held else "no") if measured is None else str(measured)
        self.rows.append(Row(what, said, "yes" if measured is None else "", held=bool(held)))


def _figure(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{number} {unit}".strip()


class Record:
    """The file of one profile. A scenario that ran again replaces what it said before."""

    def __init__(self, path: Path, profile: str) -> None:
        self.path = path
        self.profile = profile
        self.added: dict[str, Any] = {}

    def add(self, scenario: Scenario) -> None:
        self.added[f"{scenario.number}:{scenario.test}"] = {
            "number": scenario.number,
            "title": scenario.title,
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.monotonic() - scenario.began, 1),
            "load": [round(scenario.load[0], 1), round(os.getloadavg()[0], 1)],
            "cores": os.cpu_count(),
            "commit": _commit(),
            "rows": [asdict(row) for row in scenario.rows],
        }

    def load(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.exists() else {"profile": self.profile, "scenarios": {}}

    def save(self) -> None:
        record = self.load()
        record["scenarios"].update(self.added)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        temporary.replace(self.path)


def _commit() -> str:
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return run.stdout.strip() or "unknown"


def table(record: dict[str, Any]) -> str:
    """Return the record as tables in Markdown, one for each scenario."""
    lines: list[str] = []
    order = sorted(record["scenarios"].values(), key=lambda one: (_place(one["number"]), one["title"]))
    for one in order:
        busy = ", beside other programs" if max(one["load"]) > BUSY else ""
        when = f"{one['seconds']:.0f} s, {one['date']} UTC, commit {one['commit']}{busy}"
        lines += [
            f"**{one['number'].capitalize()}. {one['title']}** ({when})",
            "",
            "| | measured | wanted | |",
            "|---|---|---|---|",
            *(
                f"| {row['what']} | {row['measured']} | {row['wanted']} | {'' if row['held'] else '**missed**'} |"
                for row in one["rows"]
            ),
            "",
        ]
    return "\n".join(lines)


def _place(number: str) -> int:
    return int(number[1:]) if number[1:].isdigit() else 100


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
