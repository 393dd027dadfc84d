"""Small C libraries that stand between a program and its disk, compiled when a test needs them."""

from __future__ import annotations

import errno
import functools
import mmap
import os
import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BLOCK = 4096


@functools.cache
def library(name: str) -> Path:
    """Return the compiled library of ``name``.c; the test is skipped, with a word, where nothing compiles."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("NO DISK FAULTS TESTED: there is no C compiler (apt-get install gcc libc6-dev)")
    built = Path(tempfile.mkdtemp(prefix="outrider-preload-")) / f"{name}.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", built, HERE / f"{name}.c", "-ldl", "-pthread"],
        check=True,
    )
    return built


class Faults:
    """Which calls of the programs that run under ``environment`` fail, from now on."""

    FIELDS = ("seen", "first", "count", "error", "failed", "sync_delay_us")

    def __init__(self, folder: Path, control: Path) -> None:
        control.write_bytes(bytes(8 * len(self.FIELDS)))
        self._share(control)
        self.environment = {
            "LD_PRELOAD": str(library("faults")),
            "FAULTS_FOLDER": str(folder.resolve()),
            "FAULTS_CONTROL": str(control.resolve()),
        }

    @classmethod
    def shared(cls, control: Path) -> Faults:
        """Return the control of faults that another process made."""
        self = cls.__new__(cls)
        self._share(control)
        return self

    def _share(self, control: Path) -> None:
        with control.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)

    def _place(self, name: str) -> int:
        return 8 * self.FIELDS.index(name)

    def __getitem__(self, name: str) -> int:
        return struct.unpack_from("q", self._shared, self._place(name))[0]

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("q", self._shared, self._place(name), value)

    def arm(self, first: int, *, error: int = errno.EIO, count: int = 1) -> None:
        """Let the ``first``-th call from now on fail, and ``count`` in all in a row."""
        self["first"] = 0
        self["seen"], self["failed"], self["count"], self["error"] = 0, 0, count, error
        self["first"] = first

    def disarm(self) -> None:
        self["first"] = 0


class WallClock:
    """The wall clock of the programs that run under ``environment``; it can be set while they run."""

    def __init__(self, control: Path) -> None:
        control.write_bytes(bytes(16))
        with control.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 0)
        self.environment = {"LD_PRELOAD": str(library("clock")), "CLOCK_CONTROL": str(control.resolve())}

    @property
    def asked(self) -> int:
        """How often it was looked at. Never means that the library stood beside the program, not under it."""
        return struct.unpack_from("q", self._shared, 8)[0]

    def set(self, offset_s: int) -> None:
        """Let it be so far from the right time from now on."""
        struct.pack_into("q", self._shared, 0, offset_s)


class Power:
    """A folder whose disk is known: what would be left of it if the power went."""

    def __init__(self, folder: Path, shadow: Path, *, names: str) -> None:
        self.folder, self.shadow = folder, shadow
        self._calls = shadow.with_name(shadow.name + ".calls")
        shutil.copytree(folder, shadow)
        self.environment = {
            "LD_PRELOAD": str(library("power")),
            "POWER_FOLDER": str(folder.resolve()),
            "POWER_SHADOW": str(shadow.resolve()),
            "POWER_NAMES": names,
            "POWER_CALLS": str(self._calls),
        }

    @property
    def syncs(self) -> int:
        """How many syncs were seen. None at all means that the library stood beside the program, not under it."""
        return self._calls.stat().st_size if self._calls.exists() else 0

    def cut(self, chance: random.Random, *, written_back: float = 0.0) -> None:
        """Put into the folder what the disk has: what was synced, and of the rest each block with that probability."""
        if written_back:
            for live in sorted(self.folder.rglob("*")):
                platter = self.shadow / live.relative_to(self.folder)
                if live.is_file() and platter.is_file() and live.suffix != ".db-shm":
                    _write_back(live, platter, chance, written_back)
        shutil.rmtree(self.folder)
        shutil.copytree(self.shadow, self.folder)


def _write_back(live: Path, platter: Path, chance: random.Random, probability: float) -> None:
    with live.open("rb") as source, platter.open("r+b") as target:
        for at in range(0, os.fstat(source.fileno()).st_size, BLOCK):
            if chance.random() < probability:
                block = os.pread(source.fileno(), BLOCK, at)
                os.pwrite(target.fileno(), block, at)
