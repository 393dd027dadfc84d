"""Does the same commit give the same package? Built twice, in two places, and compared byte by byte.

    python scripts/reproducible.py [--keep FOLDER]      about ten minutes

The committed tree is laid out in two folders of different names and depths; in each, with another time zone, language,
umask and seed of hashes, the program is bundled from an environment of its own and packed as .deb, .rpm and archive. What
both share: this machine's Python, the wheel of llama.cpp, and the time of the commit.

Exit code 0 when every file of the bundles and every package is the same, 65 when one is not (each is named), 1 when it
cannot be tried here.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import bundle
import llama_wheel
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Surroundings:
    """In what a build must not leave a trace of."""

    place: str  # below the common folder
    time_zone: str
    language: str
    umask: int
    hash_seed: str


BOTH = (
    Surroundings("one", "UTC", "C.UTF-8", 0o022, "1"),
    Surroundings("another/place with a longer name", "Pacific/Kiritimati", "C", 0o077, "4711"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the committed tree twice and compare.")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="build in there, and keep it; default: a scratch folder"
    )
    chosen = parser.parse_args()
    try:
        llama_wheel.wheel("portable")
        with tempfile.TemporaryDirectory(prefix="reproducible-") as scratch:
            folder = (chosen.keep or Path(scratch)).resolve()
            with ThreadPoolExecutor(len(BOTH)) as pool:
                made = list(pool.map(lambda one: built(folder, one), BOTH))
            found = [
                *(
                    line
                    for variant in ("plain", "demo")
                    for line in differences(*(at / variant / "outrider" for at in made))
                ),
                *differing(*(at / "release" for at in made)),
            ]
            for path in sorted(made[0].glob("release/outrider*")):
                print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    except CannotBuildError as error:
        say(str(error))
        return 1
    for difference in found:
        print(f"DIFFERS: {difference}")
    print(f"{len(found)} differences" if found else "two builds, no difference")
    return 65 if found else 0


def built(folder: Path, around: Surroundings) -> Path:
    """Return the folder ``dist`` of a build of the committed tree. Raises CannotBuildError."""
    place = folder / around.place
    place.mkdir(parents=True, exist_ok=True)
    tree = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    if tree.returncode:
        raise CannotBuildError("this tree is no git checkout: there is nothing to build twice")
    subprocess.run(["tar", "-x", "-C", str(place)], input=tree.stdout, check=True)
    log = folder / f"{place.relative_to(folder).parts[0]}.log"
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(bundle.source_date()),
        "TZ": around.time_zone,
        "LC_ALL": around.language,
        "PYTHONHASHSEED": around.hash_seed,
    }
    plain = str(place / "dist" / "plain" / "outrider")
    for command in (
        ("bundle.py",),
        ("linux_package.py", "--format", "deb", "--format", "rpm", "--bundle", plain),
        ("release.py", "--bundle", plain),
    ):
        say(f"{around.place}: {' '.join(command[:1])}")
        with log.open("ab") as writer:
            done = subprocess.run(
                [sys.executable, str(place / "scripts" / command[0]), *command[1:]],
                cwd=place,
                env=environment,
                umask=around.umask,
                stdout=writer,
                stderr=writer,
                check=False,
            )
        if done.returncode:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise CannotBuildError("\n".join([*tail, f"{command[0]} failed in {place}"]))
    return place / "dist"


def differences(one: Path, other: Path) -> Iterator[str]:
    """Yield what is not the same in two folders: names, kinds, modes, targets of links, bytes."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (one, other)]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name} is in one of them only"
    for name in sorted(names[0] & names[1]):
        first, second = one / name, other / name
        modes = [path.lstat().st_mode for path in (first, second)]
        if modes[0] != modes[1]:
            yield f"{name}: {stat.filemode(modes[0])} and {stat.filemode(modes[1])}"
        elif first.is_symlink():
            if first.readlink() != second.readlink():
                yield f"{name}: a link to {first.readlink()} and to {second.readlink()}"
        elif first.is_file() and (at := first_difference(first, second)) is not None:
            yield f"{name}: from byte {at} of {first.stat().st_size}"


def differing(one: Path, other: Path) -> Iterator[str]:
    """Yield which files of two folders do not hold the same bytes; what they may be done with is the umask's."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    for name in sorted(names):
        if not all((folder / name).exists() for folder in (one, other)):
            yield f"{name} is in one of them only"
        elif (at := first_difference(one / name, other / name)) is not None:
            yield f"{name}: from byte {at}"


def first_difference(one: Path, other: Path) -> int | None:
    """Return where two files begin to differ; None: nowhere."""
    first, second = one.read_bytes(), other.read_bytes()
    if first == second:
        return None
    shorter = min(len(first), len(second))
    return next((at for at in range(shorter) if first[at] != second[at]), shorter)


if __name__ == "__main__":
    sys.exit(main())
