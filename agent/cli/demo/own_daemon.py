"""A daemon of the demo's own: the real program in a child process, on a data directory that goes with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import psutil
import tomlkit

from agent import configuration, executable
from agent.cli import child_daemon
from agent.errors import DaemonUnreachable, OutriderError
from agent.settings import TargetSettings

PATIENCE_S = 120.0
PROBE_CAP_S = 2.0  # 60 by default; the demo is impatient


class DemoFailed(OutriderError):
    """Something did not go as the demo says. One line."""

    code = "demo_failed"
    exit_code = 1


class OwnDaemon:
    """One life after the other on the same data."""

    def __init__(self, folder: Path, target: TargetSettings) -> None:
        self.target = target
        self.pid = 0
        self._folder = folder
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(configuration.ENV_PREFIX)}
        # ONNX Runtime leaves files in the home directory; they go with the demo.
        self._environment = {**kept, "OUTRIDER_CONFIG": str(folder / "outrider.toml"), "HOME": str(folder)}
        self._environment.pop("XDG_CACHE_HOME", None)
        document = {
            "data_dir": str(folder / "data"),
            "server": {"port": 0},
            "connectivity": {"probe_cap_s": PROBE_CAP_S},
            "targets": [{key: value for key, value in msgspec.to_builtins(target).items() if value not in {"", None}}],
        }
        (folder / "outrider.toml").write_text(tomlkit.dumps(document), encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[Api]:
        """Start, wait until the model can answer, and stop at the end."""
        with child_daemon.running(executable.command("serve"), self._log, self._environment) as self._process:
            self.pid = self._process.pid
            try:
                with self._api() as client:
                    yield Api(client)
            finally:
                self._remember_family()

    def command(self, *arguments: str) -> str:
        """Run ``outrider ARGUMENTS`` as a user would, and return what it prints. Raises DemoFailed."""
        done = subprocess.run(
            executable.command(*arguments),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"outrider {arguments[0]} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._remember_family()
        self._process.kill()
        self._process.wait()

    def is_gone(self) -> bool:
        """Whether every process that was ever started here has ended."""
        _, alive = psutil.wait_procs(list(self._family.values()), timeout=5)
        return not alive

    @contextlib.contextmanager
    def _api(self) -> Iterator[httpx2.Client]:
        until = time.monotonic() + PATIENCE_S
        try:
            address = child_daemon.until_healthy(self._folder / "data", self._process, PATIENCE_S)
        except DaemonUnreachable as error:
            raise DemoFailed(f"the daemon does not start, {error}: {self._last_words()}") from error
        token = (self._folder / "data" / "token").read_text(encoding="utf-8").strip()
        headers = {"authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=address.url, headers=headers, timeout=PATIENCE_S, trust_env=False) as client:
            while client.get("/readyz").status_code != 200:
                self._check_alive()
                if time.monotonic() > until:
                    raise DemoFailed(f"the model does not load: {self._last_words()}")
                time.sleep(0.05)
            self._remember_family()
            yield client

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailed(f"the daemon ended with {self._process.returncode}: {self._last_words()}")

    def _remember_family(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            self._family |= {process.pid: process for process in [parent, *parent.children(recursive=True)]}

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:].strip()


class Api:
    """The daemon's HTTP API, as any client sees it."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of a POST. Raises DemoFailed for any status but 200 and 202."""
        return self._checked(self._client.post(path, json=body))

    def waiting(self) -> int:
        """Rows in the outbox that have not been answered."""
        counts = self._checked(self._client.get("/v1/queue"))["counts"]
        return sum(int(counts[state]["rows"]) for state in ("pending", "leased", "awaiting_approval"))

    def until_settled(self, ids: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
        """Wait until none is queued; return the seconds that took and the requests."""
        began = time.monotonic()
        while True:
            records = [self._checked(self._client.get(f"/v1/requests/{some_id}")) for some_id in ids]
            passed = time.monotonic() - began
            if all(record["state"] != "queued" for record in records) or passed > PATIENCE_S:
                return passed, records
            time.sleep(0.1)

    def egress(self) -> Any:
        """Return the log of what left, and its totals."""
        return self._checked(self._client.get("/v1/egress"))

    @staticmethod
    def _checked(response: httpx2.Response) -> Any:
        if response.status_code not in {200, 202}:
            raise DemoFailed(f"{response.request.url.path} gave {response.status_code}: {response.text}")
        return response.json()
