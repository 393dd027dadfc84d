"""What one closed-label request costs through the API: by a taught head, and by the language model at its best.

A daemon of its own, idle but for these requests, one at a time. The head reads the embedded encoder's
vectors. The language model scores the same labels of the same inputs, with the shared beginning of its
prompts already computed. Cost is processor time of the daemon and all of its children.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from agent.cli.demo.own_daemon import Api, OwnDaemon
from agent.settings import TargetSettings
from agent.types import EgressPolicy
from benchmarks.intervals import percentile

BY_HEAD, BY_MODEL, WARM = 300, 24, 10  # requests
NOWHERE = TargetSettings(name="nowhere", base_url="http://127.0.0.1:9/v1", model="none", egress=EgressPolicy.NEVER)


class Cost(NamedTuple):
    """Of one request."""

    p50_ms: float
    p99_ms: float
    cpu_ms: float  # processor time, mean


def costs(taught: Sequence[tuple[str, str]], asked: Sequence[str], labels: Sequence[str]) -> tuple[Cost, Cost]:
    """Return the cost by the head and by the language model. ``taught``: texts and labels that teach."""
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        daemon = OwnDaemon(Path(folder), NOWHERE)
        with daemon.running() as api:
            examples = Path(folder) / "examples.jsonl"
            lines = (json.dumps({"input": text, "label": label}) for text, label in taught)
            examples.write_text("\n".join(lines), encoding="utf-8")
            options = [part for label in labels for part in ("--label", label)]
            for name in ("head", "plain"):
                daemon.command("tasks", "new", name, *options)
            daemon.command("tasks", "teach", "head", str(examples), "--features", "embedding")
            process = psutil.Process(daemon.pid)
            return _measured(api, "head", process, asked, BY_HEAD), _measured(api, "plain", process, asked, BY_MODEL)


def _measured(api: Api, task: str, process: psutil.Process, asked: Sequence[str], count: int) -> Cost:
    def ask(text: str) -> None:
        api.post("/v1/classify", {"task": task, "input": text, "outrider": {"route_mode": "local_only"}})

    texts = [asked[number % len(asked)] for number in range(WARM + count)]
    for text in texts[:WARM]:
        ask(text)
    spent, before = [], _cpu_s(process)
    for text in texts[WARM:]:
        began = time.perf_counter()
        ask(text)
        spent.append((time.perf_counter() - began) * 1000)
    cpu_ms = (_cpu_s(process) - before) * 1000 / count
    return Cost(percentile(spent, 0.5), percentile(spent, 0.99), cpu_ms)


def _cpu_s(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    return float(sum(sum(one.cpu_times()[:2]) for one in family))
