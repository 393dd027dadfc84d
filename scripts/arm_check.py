"""Does the engine compute the same on Arm? Its kernels for aarch64, run by an emulator, beside those of this machine.

llama.cpp's sources out of the pinned sdist are built for aarch64 with a cross compiler, once for
each family of processors (plain NEON, dot products, matrices of 8-bit integers), with a program
that reads tokens. qemu-aarch64 runs it: right or wrong can be seen so, speed cannot.

    python scripts/arm_check.py MODEL.gguf ...      builds at first, 6 to 10 minutes; then about half a minute each
    python scripts/arm_check.py --program           the program itself on Arm: root, Debian, Linux 6.7; minutes each
    python scripts/arm_check.py --build             only builds; prints the folder

Each model writes an answer here, always the likeliest token, and every family reads the same
tokens. With --program, daemon and worker are started here and in a root for Arm (scripts/arm_root.py), and both are asked
over HTTP for the likeliest answer of the demo model, and for label scores. Exit code 0 when all agree, 65 when one does
not, 1 when it cannot be tried here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arm_root
import llama_peer
import llama_wheel
from llama_wheel import VERSION, CannotBuildError, say

SOURCES = Path(__file__).with_name("arm")
FAMILIES = {  # what the kernels are built for -> a processor that qemu knows and that has it
    "armv8-a": "cortex-a53",
    "armv8.2-a+dotprod+fp16": "cortex-a76",
    "armv8.6-a+dotprod+fp16+i8mm": "max",
}
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON", "-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF", "-DLLAMA_BUILD_COMMON=OFF",
)  # fmt: skip
LIBRARIES = "/usr/aarch64-linux-gnu"
PACKAGES = "qemu-user-static gcc-aarch64-linux-gnu g++-aarch64-linux-gnu cmake"
TEXT = "The lighthouse keeper wrote in his log every evening, and on the last day of the year he"
FOLDER = "arm"  # in the cache
ANSWER = 24  # tokens
# Kernels differ in the order of their sums and in how they round activations to 8 bits: two right ones of this
# machine differ as much. A wrong one is off by whole units.
MOST_DIVERGENCE = 0.02  # nats, KL(here || there), mean over the positions
LEAST_SAME = 0.85  # share of positions with the same likeliest token
MOST_GAP = 0.5  # between the two likeliest tokens where they differ, in nats
CONVERSATION = "scripts/arm_conversation.py"
SAME_TOKENS = 5  # at the start of an answer
MOST_TOKEN_GAP = 0.5  # of the log-probability of a token of the answer, in nats
MOST_LABEL_GAP = 0.1  # of a label's probability; two forms of the same weights on this machine: 0.06


@dataclass(frozen=True)
class Comparison:
    """How a family's logits stand to those of this machine."""

    divergence: float  # nats
    same: float  # share of positions
    answer_same: int  # tokens of the answer
    gap: float  # nats: how much likelier our token was, at worst, where theirs is another

    @property
    def agrees(self) -> bool:
        return self.divergence <= MOST_DIVERGENCE and self.same >= LEAST_SAME and self.gap <= MOST_GAP

    def __str__(self) -> str:
        return (
            f"KL {self.divergence:.4f}, same likeliest token at {self.same:.1%}, {self.answer_same} of {ANSWER} tokens "
            f"of the answer; where not, ours was likelier by at most {self.gap:.2f} nats"
        )


def built() -> Path:
    """Return the folder with one program for each family, building what is missing. Raises CannotBuildError."""
    folder = llama_wheel.cache_folder(FOLDER, key())
    missing = [family for family in FAMILIES if not (folder / family / "read_tokens").exists()]
    if not missing:
        return folder
    require()
    say(f"building llama.cpp for {len(missing)} families of Arm processors, 6 to 10 minutes (once; kept in {folder})")
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        source = llama_peer.fetch(Path(scratch), log=log)
        build = Path(scratch) / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(llama_wheel.jobs())
        for family in missing:
            given = [*OPTIONS, f"-DGGML_CPU_ARM_ARCH={family}", f"-DLLAMA_CPP={source}"]
            llama_wheel.run_logged(["cmake", "-S", str(SOURCES), "-B", str(build), *generator, *given], {}, log=log)
            command = ["cmake", "--build", str(build), "--parallel", jobs, "--target", "read_tokens"]
            llama_wheel.run_logged(command, {}, log=log)
            shutil.rmtree(folder / family, ignore_errors=True)
            shutil.copytree(build / "bin", folder / family, symlinks=True)
    return folder


def key() -> str:
    """Return what stands for this version and these options."""
    files = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()))
    text = f"{VERSION}\n{OPTIONS}\n{sorted(FAMILIES)}\n{files}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def require() -> None:
    """Raise CannotBuildError with the command when a tool is missing."""
    tools = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "cmake")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        raise CannotBuildError(f"{', '.join(missing)} is missing; on Debian: sudo apt-get install -y {PACKAGES}")
    emulator()


def emulator() -> str:
    """Return the emulator's path. Raises CannotBuildError."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None or not Path(LIBRARIES).is_dir():
        raise CannotBuildError(f"there is no qemu-aarch64 for programs; on Debian: sudo apt-get install -y {PACKAGES}")
    return found


def written_here(model: Path, text: str = TEXT, answer: int = ANSWER) -> tuple[list[int], int, Any]:
    """Return the tokens of text and answer, how many are the text's, and the logits after each: (tokens, vocabulary)."""
    import llama_cpp.llama_cpp as native
    import numpy as np

    from agent.llama_library import load_backends

    load_backends()
    weights = native.llama_model_load_from_file(str(model).encode(), native.llama_model_default_params())
    if not weights:
        raise CannotBuildError(f"{model} cannot be loaded")
    vocabulary = native.llama_model_get_vocab(weights)
    width = native.llama_vocab_n_tokens(vocabulary)
    room = (native.llama_token * 256)()
    raw = text.encode()
    ids = list(room[: native.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)])
    options = native.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = len(ids) + answer
    options.n_threads = options.n_threads_batch = 1
    context = native.llama_init_from_model(weights, options)
    prompt = len(ids)
    rows: list[Any] = []
    left = ids
    while True:
        batch = native.llama_batch_init(len(left), 0, 1)
        batch.n_tokens = len(left)
        for at, token in enumerate(left):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, len(rows) + at, 1, 1
            batch.seq_id[at][0] = 0
        if native.llama_decode(context, batch):
            raise CannotBuildError(f"{model} cannot read the text")
        rows += [
            np.ctypeslib.as_array(native.llama_get_logits_ith(context, at), (width,)).copy() for at in range(len(left))
        ]
        native.llama_batch_free(batch)
        if len(ids) == prompt + answer - 1:
            break
        left = [int(rows[-1].argmax())]
        ids = ids + left
    native.llama_free(context)
    native.llama_model_free(weights)
    return ids, prompt, np.stack(rows)


def read_there(folder: Path, family: str, model: Path, tokens: list[int], prompt: int) -> Any:
    """Return the logits after each token by a family's kernels: (tokens, vocabulary). Raises CannotBuildError."""
    import numpy as np

    place = folder / family
    command = [emulator(), "-L", LIBRARIES, "-cpu", FAMILIES[family], "-E", f"LD_LIBRARY_PATH={place}"]
    done = subprocess.run(
        [*command, str(place / "read_tokens"), str(model), str(prompt), *map(str, tokens)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").splitlines()[-1:]
        raise CannotBuildError(f"{family} ended with {done.returncode}: {' '.join(last)}")
    return np.frombuffer(done.stdout, np.float32).reshape(len(tokens), -1)


def compared(here: Any, there: Any, prompt: int) -> Comparison:
    """Return how two sets of logits stand to each other; both (tokens, vocabulary)."""
    import numpy as np

    def log_softmax(logits: Any) -> Any:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    ours, theirs = log_softmax(here), log_softmax(there)
    first, other = ours.argmax(-1), theirs.argmax(-1)
    rows = np.arange(len(ours))
    return Comparison(
        divergence=float((np.exp(ours) * (ours - theirs)).sum(-1).mean()),
        same=float((first == other).mean()),
        answer_same=int((first == other)[prompt - 1 :].sum()),
        gap=float((ours[rows, first] - ours[rows, other]).max()),
    )


def said_here() -> dict[str, Any]:
    """Return what the program answers on this machine. Raises CannotBuildError."""
    path = os.pathsep.join(filter(None, (str(arm_root.ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(arm_root.ROOT / CONVERSATION)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CannotBuildError(f"the program does not answer here: {done.stderr.strip()[-500:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def said_there(folder: Path, family: str) -> dict[str, Any]:
    """Return what the program answers on Arm, by the kernels of a family. Raises CannotBuildError."""
    command = ["python3", f"/opt/outrider/tree/{CONVERSATION}"]
    told: dict[str, Any] = json.loads(
        arm_root.run(arm_root.made(), folder / family, FAMILIES[family], emulator(), command)
    )
    return told


@dataclass(frozen=True)
class Conversation:
    """How an answer and label scores stand to those of this machine."""

    text: str
    machine: str
    tokens: int  # of our answer
    same: int  # of them from the start on
    token_gap: float  # nats, at most, over those
    label_gap: float  # of probabilities, at most
    same_label: bool

    @property
    def agrees(self) -> bool:
        begins = self.same >= min(SAME_TOKENS, self.tokens)
        near = self.token_gap <= MOST_TOKEN_GAP and self.label_gap <= MOST_LABEL_GAP
        return begins and self.same_label and near

    def __str__(self) -> str:
        return (
            f"{self.machine}: {self.text!r}; {self.same} of {self.tokens} tokens the same from the start, their "
            f"log-probabilities within {self.token_gap:.2f} nats; {'the same' if self.same_label else 'ANOTHER'} label, "
            f"probabilities within {self.label_gap:.3f}"
        )


def conversation_compared(here: dict[str, Any], there: dict[str, Any]) -> Conversation:
    """Return how one conversation stands to another."""
    ours, theirs = (told["chat"]["choices"][0]["logprobs"]["content"] for told in (here, there))
    pairs = list(zip(ours, theirs, strict=False))
    same = next((at for at, (one, other) in enumerate(pairs) if one["token"] != other["token"]), len(pairs))
    labels = [{row["label"]: row["probability"] for row in told["scores"]["labels"]} for told in (here, there)]
    return Conversation(
        text=there["chat"]["choices"][0]["message"]["content"],
        machine=there["machine"],
        tokens=len(ours),
        same=same,
        token_gap=max((abs(one["logprob"] - other["logprob"]) for one, other in pairs[:same]), default=0.0),
        label_gap=max(abs(score - labels[1][label]) for label, score in labels[0].items()),
        same_label=here["scores"]["label"] == there["scores"]["label"],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the engine's kernels for Arm with those of this machine.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--program", action="store_true", help="the program itself, by one conversation")
    parser.add_argument("--build", action="store_true", help="only build")
    chosen = parser.parse_args()
    if not chosen.models and not chosen.build and not chosen.program:
        parser.error("name a model, or say --program or --build")
    wrong = False
    try:
        folder = built()
        if chosen.build:
            print(folder)
        for model in chosen.models:
            tokens, prompt, here = written_here(model)
            for family in FAMILIES:
                found = compared(here, read_there(folder, family, model, tokens, prompt), prompt)
                wrong = wrong or not found.agrees
                print(f"{model.name}, {family}: {'agrees' if found.agrees else 'DOES NOT AGREE'}: {found}", flush=True)
        if chosen.program:
            ours = said_here()
            for family in FAMILIES:
                talk = conversation_compared(ours, said_there(folder, family))
                wrong = wrong or not talk.agrees
                print(f"program, {family}: {'agrees' if talk.agrees else 'DOES NOT AGREE'}: {talk}", flush=True)
    except CannotBuildError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 65 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
