"""A machine with an Arm processor, as far as programs see one.

Debian's smallest root for arm64 with Python, and what the program needs there, by the digests of
packaging/requirements.lock. Its programs are run by qemu-aarch64, in namespaces of their own: nothing of this machine is
changed, and there is no network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import llama_wheel
from llama_wheel import VERSION, CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "packaging" / "requirements.lock", ROOT / "packaging" / "models.lock")
SUITE = "bookworm"
OLDEST_GLIBC = 17  # of the names that wheels for Arm go by, manylinux_2_17 ...
ITS_GLIBC = 36  # of the suite
SITE = "opt/outrider/site"
PACKAGES = "debootstrap iproute2 qemu-user-static"
# A program for 64-bit Arm begins with this; masked, so that every kind of ELF file is meant that can be run.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
INSIDE = r"""
set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' ":arm:M::$MAGIC:$MASK:$EMULATOR:F" > /proc/sys/fs/binfmt_misc/register
ip link set lo up
mount -t proc proc "$AT/proc"
mount -t tmpfs tmpfs "$AT/tmp"
mount --bind "$TREE" "$AT/opt/outrider/tree"
mount --bind "$KERNELS" "$AT/opt/outrider/kernels"
exec chroot "$AT" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 QEMU_CPU="$CPU" \
    PYTHONPATH=/opt/outrider/tree:/opt/outrider/site LLAMA_CPP_LIB_PATH=/opt/outrider/kernels "$@"
"""


def made() -> Path:
    """Return the root, made once (about three minutes). Raises CannotBuildError."""
    text = f"{VERSION}\n{SUITE}\n{INSIDE}\n{''.join(lock.read_text(encoding='utf-8') for lock in LOCKS)}"
    folder = llama_wheel.cache_folder("arm-root", hashlib.sha256(text.encode()).hexdigest()[:12])
    root = folder / "root"
    if (folder / ".ready").exists():
        return root
    if os.geteuid() != 0:
        raise CannotBuildError("a root of Debian can be made by root only")
    if missing := [tool for tool in ("debootstrap", "dpkg-deb", "ip", "unshare") if shutil.which(tool) is None]:
        raise CannotBuildError(f"{', '.join(missing)} is missing; on Debian: sudo apt-get install -y {PACKAGES}")
    say(f"making a root for Arm, about three minutes (once; kept in {folder})")
    shutil.rmtree(root, ignore_errors=True)
    log = folder / "made.log"
    log.unlink(missing_ok=True)
    # Only unpacked: nothing of it is set up, as that would have to be run.
    command = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", "--include=python3", SUITE, str(root)]
    logged(command, log)
    for deb in sorted(root.glob("var/cache/apt/archives/*.deb")):
        logged(["dpkg-deb", "-x", str(deb), str(root)], log)
        deb.unlink()
    platforms = ["any", "manylinux2014_aarch64"]
    platforms += [f"manylinux_2_{minor}_aarch64" for minor in range(OLDEST_GLIBC, ITS_GLIBC + 1)]
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none"]
    command += [f"--platform={name}" for name in platforms]
    command += ["--target", str(root / SITE), *(f"--requirement={lock}" for lock in LOCKS)]
    logged(command, log)
    binding_copied(root / SITE)
    for name in ("tree", "kernels"):
        (root / "opt/outrider" / name).mkdir()
    (folder / ".ready").touch()
    return root


def logged(command: Sequence[str], log: Path) -> None:
    """Run a command, append what it says to the log. Raises CannotBuildError."""
    with log.open("ab") as writer:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, check=False)
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise CannotBuildError("\n".join([*tail, f"no root for Arm could be made; the whole log is {log}"]))


def binding_copied(site: Path) -> None:
    """Lay the binding of llama.cpp in, which is the same Python for every processor; its libraries come from elsewhere."""
    import llama_cpp

    here = Path(llama_cpp.__file__).parent
    shutil.copytree(here, site / here.name, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    for described in here.parent.glob("llama_cpp_python-*.dist-info"):
        shutil.copytree(described, site / described.name)


def run(root: Path, kernels: Path, processor: str, emulator: str, command: Sequence[str]) -> str:
    """Return what a command says there, with the kernels of that folder. Raises CannotBuildError when it fails."""
    given = {
        "MAGIC": MAGIC, "MASK": MASK, "EMULATOR": emulator, "AT": str(root), "TREE": str(ROOT),
        "KERNELS": str(kernels), "CPU": processor,
    }  # fmt: skip
    alone = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*alone, "sh", "-c", INSIDE, "sh", *command],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotBuildError(f"{done.stderr.strip()[-1500:]}\n{command[0]} ended with {done.returncode}")
    return done.stdout
