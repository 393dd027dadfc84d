"""A real daemon in a child process, with the scripted worker in place of native inference.

Run as a program it *is* that daemon; imported, it starts and kills one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx2

PATIENCE_S = 60


class DaemonProcess:
    """One data directory and, one after the other, the daemons that serve it."""

    def __init__(self, folder: Path, toml: str = "", *, command_prefix: tuple[str, ...] = (), real: bool = False):
        self.folder = folder
        self.real = real
        self.data = folder / "data"
        self.config = folder / "outrider.toml"
        self.prefix = command_prefix
        self.process: subprocess.Popen | None = None
        self.more_environment: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(toml)

    def configure(self, toml: str) -> None:
        port = "" if "[server]" in toml else "[server]\nport = 0\n"
        self.config.write_text(f'data_dir = "{self.data}"\n{port}{toml}')

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OUTRIDER_")}
        return {**kept, "OUTRIDER_CONFIG": str(self.config), **self.more_environment}

    def start(self, *, wait: bool = True) -> DaemonProcess:
        (self.data / "daemon.json").unlink(missing_ok=True)
        log = (self.folder / "log").open("ab")
        program = ["-m", "agent", "serve"] if self.real else [str(Path(__file__).resolve()), str(self.config)]
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, *program], stdout=log, stderr=log, env=self.environment
        )
        log.close()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
            try:
                self.pid = json.loads((self.data / "daemon.json").read_text())["pid"]
                with self.client() as client:
                    if client.get("/healthz").status_code == 200:
                        return
            except (OSError, ValueError, httpx2.TransportError):
                pass
            time.sleep(0.02)
        raise TimeoutError(f"the daemon is not ready:\n{self.log()}")

    @property
    def url(self) -> str:
        return json.loads((self.data / "daemon.json").read_text())["url"]

    def token(self, name: str = "token") -> str:
        return (self.data / name).read_text().strip()

    def client(self, *, admin: bool = False) -> httpx2.Client:
        name = "admin-token" if admin else "token"
        return httpx2.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.token(name)}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )

    def chat(self, text: str, *, key: str | None = None, **outrider) -> httpx2.Response:
        body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": text}]}
        if outrider:
            body["outrider"] = outrider
        with self.client() as client:
            return client.post("/v1/chat/completions", json=body, headers={"idempotency-key": key} if key else {})

    def request(self, request_id: str) -> dict:
        with self.client() as client:
            return client.get(f"/v1/requests/{request_id}").raise_for_status().json()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __del__(self) -> None:
        # A test that failed in the middle must not leave a daemon behind.
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]


def main() -> None:
    from fakes import fake_worker

    from agent import configuration
    from agent.daemon import serve
    from agent.telemetry import configure_logging
    from agent.types import ModelFile

    configure_logging()
    loaded = configuration.load(Path(sys.argv[1]))

    def resolve(name: str) -> ModelFile:
        return ModelFile(name=name, path="/dev/null", sha256="f" * 64, context_tokens=4096)

    asyncio.run(serve(loaded, worker_command=fake_worker.COMMAND, resolve=resolve))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
