"""Put everything that a machine without a network needs into one file, for a USB stick.

    python scripts/stick.py --package FILE --models FILE --key FILE [--with FILE ...] [--output FOLDER]

outrider-VERSION-stick.tar holds one folder: the package (.deb, .rpm or archive), the models (a bundle that
`outrider bundle export` wrote), whatever else --with names, SHA256SUMS of all of them and its signature by the key of
releases (minisign -G -W), and READ-ME.txt with what to type. The same input gives the same bytes.

Exit code 1 with one clear line when something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
import tarfile
from pathlib import Path

import bundle
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
READ_ME = """\
Outrider {version} for a machine without a network. In this folder, as root:

    minisign -V -P {key} -m SHA256SUMS
    sha256sum -c SHA256SUMS
    {install}
    outrider bundle import {models}
    outrider ask "What is the capital of France?"

Compare the key with the one that is published; a key that came on the same stick proves nothing. Where there is no
minisign, check the signature on the machine that wrote the stick. The bundle of models has a key of its own: the import
shows its fingerprint and asks.
"""
INSTALL = {".deb": "dpkg -i {name}", ".rpm": "rpm -i {name}", ".xz": "tar -xf {name} -C /opt"}


def main() -> int:
    parser = argparse.ArgumentParser(description="One file for a machine without a network.")
    parser.add_argument("--package", type=Path, required=True, help=".deb, .rpm or archive")
    parser.add_argument("--models", type=Path, required=True, help="a bundle: outrider bundle export NAME FILE")
    parser.add_argument("--key", type=Path, required=True, help="secret key of minisign, without a passphrase")
    parser.add_argument("--with", dest="more", type=Path, action="append", default=[], help="goes along; repeatable")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "release")
    chosen = parser.parse_args()
    try:
        print(stick(chosen.package, chosen.models, chosen.more, chosen.key, chosen.output))
    except CannotBuildError as error:
        say(str(error))
        return 1
    return 0


def stick(package: Path, models: Path, more: list[Path], key_path: Path, output: Path) -> Path:
    """Write the file; return its path. Raises CannotBuildError."""
    sys.path.insert(0, str(ROOT))
    from agent.errors import OutriderError
    from agent.models.minisign import own_key

    files = [package, models, *more]
    if missing := [path for path in files if not path.is_file()]:
        raise CannotBuildError(f"{missing[0]} is not there")
    version = re.search(r"\d+(\.\d+)+", package.name)
    if version is None or package.suffix not in INSTALL:
        raise CannotBuildError(f"{package} is no package: its name has no version, or it is no .deb, .rpm or archive")
    try:
        key = own_key(key_path, make=False)
    except OutriderError as error:
        raise CannotBuildError(str(error)) from error
    if key is None:
        raise CannotBuildError(f"{key_path} is not there; make a key with: minisign -G -W -s {key_path}")
    name = f"outrider-{version[0]}-stick"
    told = READ_ME.format(
        version=version[0],
        key=key.public,
        install=INSTALL[package.suffix].format(name=package.name),
        models=models.name,
    )
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files))
    sums += f"{hashlib.sha256(told.encode()).hexdigest()}  READ-ME.txt\n"
    texts = {
        "READ-ME.txt": told,
        "SHA256SUMS": sums,
        "SHA256SUMS.minisig": key.sign(sums.encode(), f"SHA256SUMS of {name}"),
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as writer:
        for inside, text in texts.items():
            writer.addfile(entry(f"{name}/{inside}", len(text.encode())), io.BytesIO(text.encode()))
        for file in files:
            with file.open("rb") as reader:
                writer.addfile(entry(f"{name}/{file.name}", file.stat().st_size), reader)
    return path


def entry(name: str, size: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.mtime, found.mode = size, bundle.source_date(), 0o644
    return found


if __name__ == "__main__":
    sys.exit(main())
