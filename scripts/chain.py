"""From a checkpoint on a hub to an answer on this device, on real weights: ``make chain``.

    python scripts/chain.py [--folder FOLDER] [--onnx]

Rebuilds the embedded SmolLM2 as a checkpoint, serves it from a hub on loopback, pulls it, makes
models of it for a computer and a phone, each measured beside its source, and of the embedded encoder
one for an NPU; picks one of them, and asks the daemon a question, which must be answered from the
picked file. Needs about 5 GB of disk and, the first time, a package index (torch). A call that was
stopped goes on where it was. Exit code 0 when every step did what it says.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopback_hub import serving

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "rebuilt/SmolLM2-135M-Instruct"
SOURCE, CPU, PHONE, GENERATION = "smollm2-rebuilt", "smollm2-cpu", "smollm2-phone", "smollm2-onnx"
ENCODER, NPU = "minilm-l6-v2", "minilm-npu"
QUESTION = "What is the capital of France?"
PATIENCE_S = 120.0
LEAST_AGREEMENT = 0.5  # with the source, on the text that ships


class ChainBroken(Exception):
    """A step did not do what it says. One line."""


def main() -> int:
    parser = argparse.ArgumentParser(description="From a checkpoint on a hub to an answer on this device.")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "chain", help="where everything is kept")
    parser.add_argument("--onnx", action="store_true", help="also build an ONNX model; another 1.3 GB the first time")
    given = parser.parse_args()
    began = time.monotonic()
    try:
        run(Chain(given.folder.absolute()), onnx=given.onnx)
    except ChainBroken as error:
        say(f"chain broken: {error}")
        return 1
    say(f"\nThe whole chain took {time.monotonic() - began:.0f} s. Everything lies in {given.folder}.")
    return 0


def run(chain: Chain, *, onnx: bool) -> None:
    """Go through all steps; each checks itself. With ``onnx``, a generative ONNX model is among the candidates."""
    checkpoint = chain.folder / "checkpoint"
    candidates = [CPU, PHONE, *([GENERATION] if onnx else [])]
    with chain.step("The environments that read, convert and build"):
        chain.outrider("quantize", "--setup", "--yes")
        if onnx:
            chain.outrider("quantize", "--setup", "--yes", "--environment", "generation")
    with chain.step("SmolLM2 rebuilt as a Hugging Face checkpoint, from the embedded GGUF file"):
        if checkpoint.exists():
            say(f"   {checkpoint} is there")
        else:
            chain.python("scripts/rebuild_checkpoint.py", str(checkpoint), "--data-dir", str(chain.data))
    with (
        chain.step("Served by a hub on loopback, pulled with digests checked"),
        serving({REPOSITORY: checkpoint}) as url,
    ):
        chain.outrider("pull", REPOSITORY, "--name", SOURCE, HF_ENDPOINT=url)
        chain.outrider("models", "verify", SOURCE)
    with chain.step("Quantized for a computer, measured beside its source"):
        chain.outrider("quantize", SOURCE, "--target", "cpu", "--name", CPU)
    with chain.step("Quantized for a phone, measured beside its source"):
        chain.outrider("quantize", SOURCE, "--target", "phone", "--name", PHONE)
    if onnx:
        with chain.step("Built for ONNX Runtime, measured beside the conversion without loss"):
            chain.outrider("quantize", SOURCE, "--recipe", "onnx-int4", "--name", GENERATION)
    if "onnx-npu" in chain.recipes():
        with chain.step("The embedded encoder quantized for an NPU, compared with its source"):
            chain.outrider("quantize", ENCODER, "--target", "npu", "--name", NPU)
    for name in candidates:
        chain.require_agreement(name)
    with chain.step("The best within the budget is picked (--force: 135 million weights are below the floor)"):
        chain.outrider("models", "pick", "--candidates", ",".join(candidates), "--force")
        picked = chain.picked()
    with chain.step(f"The daemon answers from {picked}"):
        chain.ask(picked)


class Chain:
    """One folder and what is run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._number = 0
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "outrider.toml"
        config.write_text(f"data_dir = {json.dumps(str(self.data))}\n[server]\nport = 0\n", encoding="utf-8")
        ours = ("OUTRIDER_", "HF_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environment = kept | {"OUTRIDER_CONFIG": str(config), "PYTHONPATH": str(ROOT), "COLUMNS": "140"}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        say(f"\n{self._number}. {title}")
        began = time.monotonic()
        yield
        say(f"   [{time.monotonic() - began:.1f} s]")

    def outrider(self, *arguments: str, accept: tuple[int, ...] = (0,), **variables: str) -> None:
        """Run a command and show what it says. Raises ChainBroken at another exit code."""
        self._run(["-m", "agent"], "outrider", arguments, accept, variables)

    def python(self, script: str, *arguments: str) -> None:
        """Run a script of this tree, as above."""
        self._run([script], f"python {script}", arguments, (0,), {})

    def _run(
        self, program: list[str], shown: str, arguments: tuple[str, ...], accept: tuple[int, ...], more: dict[str, str]
    ) -> None:
        say(f"   $ {' '.join([shown, *map(self._shown, arguments)])}")
        with subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env=self._environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if not _is_counting(line):
                    say(f"   {self._shown(line.rstrip())}")
        if child.returncode not in accept:
            raise ChainBroken(f"{shown} {arguments[0]} ended with {child.returncode}")

    def _shown(self, text: str) -> str:
        return text.replace(str(self.folder), "FOLDER").replace(str(ROOT), ".")

    def _json(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "agent", *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ChainBroken(f"{shlex.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout)

    def recipes(self) -> list[str]:
        """Return the recipes that this program has."""
        found: list[str] = self._json("quantize", "--recipe", "list")
        return found

    def require_agreement(self, name: str) -> None:
        """See that a model was compared with its source and does say what that says. Raises ChainBroken."""
        quality = self._json("models", "show", name)["quality"]
        agreement = quality["texts"][0]["agreement"] if quality else None
        if agreement is None or agreement["value"] < LEAST_AGREEMENT:
            raise ChainBroken(f"{name} was not compared with its source, or does not agree with it: {agreement}")

    def picked(self) -> str:
        """Return the model that ``default`` stands for now."""
        aliases = json.loads((self.data / "models" / "aliases.json").read_text(encoding="utf-8"))
        return str(aliases["default"]["model"])

    def ask(self, picked: str) -> None:
        """Start the daemon, ask it, and see which file has answered."""
        with (self.folder / "daemon.log").open("wb") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "agent", "serve"],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_for(daemon)
            self.outrider("ask", QUESTION, "--max-tokens", "40", "--explain")
            answer = self._json("ask", QUESTION, "--max-tokens", "40")
        finally:
            daemon.terminate()
            daemon.wait(PATIENCE_S)
        expected = self._json("models", "show", picked)["sha256"]
        if answer["system_fingerprint"] != f"fp_{expected[:12]}":
            raise ChainBroken(f"{answer['system_fingerprint']} has answered, not {picked} ({expected})")
        say(f"   answered from {picked}, sha256 {expected}")

    def _wait_for(self, daemon: subprocess.Popen[bytes]) -> None:
        announced = self.data / "daemon.json"
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and daemon.poll() is None:
            try:
                if json.loads(announced.read_text(encoding="utf-8")).get("pid") == daemon.pid:
                    return
            except (FileNotFoundError, ValueError):
                pass  # not yet
            time.sleep(0.05)
        raise ChainBroken(f"the daemon does not start; see {self.folder / 'daemon.log'}")


def _is_counting(line: str) -> bool:
    """Whether a line only says how far something is; in a transcript there are too many of them."""
    return any(said in line for said in (" asked, ", " tokens read", " texts read"))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
