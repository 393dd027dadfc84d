"""A whole chat with the bundled program on a processor of 2008: no AVX, no AVX2, no FMA.

qemu emulates it for this one program and its children: a mark in a byte of the ELF header that nobody reads, and a rule of
binfmt_misc for that mark, in a user namespace of its own. The kernel's filters of system calls are not emulated: the
worker does not lock itself in there, which is switched off by the configuration.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import bare_machine
import httpx2
import psutil
import pytest

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
BUNDLE = bare_machine.ROOT / "dist" / "demo" / "outrider"
MARK_AT, MARK = 15, b"\x5a"  # the last byte of e_ident: padding
RULE = ":nehalem:M::" + r"\x7fELF" + r"\x00" * 11 + r"\x5a:" + r"\xff" * 4 + r"\x00" * 11 + r"\xff:"
START = """
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && printf '%s' "$RULE" > /proc/sys/fs/binfmt_misc/register || exit 3
exec "$PROGRAM" --set server.port=0 serve
"""
PATIENCE_S = 240


@pytest.fixture
def program(tmp_path):
    """The bundled program, marked; the folder of all else is the built one."""
    if not BUNDLE.exists():
        pytest.skip("NO OLD PROCESSOR TESTED: dist/demo is missing; make it first: make bundle")
    if shutil.which("qemu-x86_64-static") is None:
        pytest.skip("NO OLD PROCESSOR TESTED: qemu is missing (apt-get install -y qemu-user-static)")
    tried = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc"],
        capture_output=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"NO OLD PROCESSOR TESTED: {tried.stderr.decode().strip()}")
    (tmp_path / "_internal").symlink_to(BUNDLE / "_internal")
    marked = bytearray((BUNDLE / "outrider").read_bytes())
    marked[MARK_AT : MARK_AT + 1] = MARK
    path = tmp_path / "outrider"
    path.write_bytes(marked)
    path.chmod(0o755)
    return path


def test_a_chat_on_a_processor_without_avx(program, tmp_path):
    emulator = tmp_path / "nehalem"
    emulator.write_text('#!/bin/sh\nexec qemu-x86_64-static -cpu Nehalem "$@"\n')
    emulator.chmod(0o755)
    config = tmp_path / "outrider.toml"
    config.write_text(f'data_dir = "{tmp_path}/data"\n[engine]\nconfine = false\n')
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "OUTRIDER_CONFIG": str(config),
        "RULE": f"{RULE}{emulator}:", "PROGRAM": str(program),
    }  # fmt: skip
    log = (tmp_path / "log").open("wb")
    daemon = subprocess.Popen(["unshare", "-Urm", "sh", "-c", START], env=environment, stdout=log, stderr=log)
    log.close()
    try:
        told = tmp_path / "data" / "daemon.json"
        until = time.monotonic() + PATIENCE_S
        while not told.exists():
            assert daemon.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
        token = (tmp_path / "data" / "token").read_text().strip()
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = httpx2.post(
            json.loads(told.read_text())["url"] + "/v1/chat/completions",
            headers={"authorization": f"Bearer {token}"},
            json={"model": "default", "messages": question, "max_tokens": 12},
            timeout=PATIENCE_S,
            trust_env=False,
        )
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        (worker,) = psutil.Process(daemon.pid).children()
        assert "Nehalem" in worker.cmdline()
        assert "engine-worker" in worker.cmdline()
        kernels = set(re.findall(r"libggml-cpu-\w+", Path(f"/proc/{worker.pid}/maps").read_text()))
        print(f"\n{answer.json()['choices'][0]['message']['content']} ({', '.join(kernels)})")
        assert kernels == {"libggml-cpu-sse42"}
    finally:
        daemon.terminate()
        daemon.wait(60)
