"""Pack what scripts/bundle.py made for people to fetch: archive, checksums, signatures.

    python scripts/release.py [--key FILE] [--bundle dist/plain/outrider]

outrider-VERSION-linux-MACHINE.tar.xz     the folder; the same input gives the same bytes
SHA256SUMS                                of every file in the output folder, as `sha256sum -c` reads it
*.minisig                                 with --key: a secret key of minisign without a passphrase (minisign -G -W)

`outrider update` takes such an archive. Exit code 1 with one clear line when something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import bundle
import linux_package
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description="Pack the bundle for people to fetch.")
    parser.add_argument("--bundle", type=Path, action="append", help="default: both variants in dist")
    parser.add_argument("--key", type=Path, help="secret key of minisign, without a passphrase; none: not signed")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "release")
    chosen = parser.parse_args()
    try:
        chosen.output.mkdir(parents=True, exist_ok=True)
        for folder in chosen.bundle or [ROOT / "dist" / name / "outrider" for name in ("plain", "demo")]:
            archive(folder.resolve(), chosen.output)
        for path in sorted((ROOT / "dist").glob("*/outrider*.deb")) + sorted((ROOT / "dist").glob("*/outrider*.rpm")):
            shutil.copy2(path, chosen.output / path.name)
        sums = checksums(chosen.output)
        signed(chosen.output, chosen.key)
    except CannotBuildError as error:
        say(str(error))
        return 1
    print(sums.read_text(encoding="utf-8"), end="")
    return 0


def archive(folder: Path, output: Path) -> Path:
    """Return the archive of a bundle: names sorted, nobody's owner, the time of the source."""
    if not (folder / "sbom.cdx.json").exists():
        raise CannotBuildError(f"{folder} is not a bundle; make it first: make bundle")
    variant = "-demo" if linux_package.has_demo_model(folder) else ""
    version = linux_package.version_of(folder)
    path = output / f"outrider{variant}-{version}-linux-{platform.machine()}.tar.xz"
    command = ["tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=posix"]
    command += [
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
        f"--mtime=@{bundle.source_date()}",
    ]
    command += ["-C", str(folder.parent), "-I", "xz -6 -T2", "-cf", str(path), folder.name]
    if subprocess.run(command, check=False).returncode:
        raise CannotBuildError(f"{path} cannot be packed")
    return path


def checksums(output: Path) -> Path:
    """Write SHA256SUMS anew."""
    sums = output / "SHA256SUMS"
    files = [path for path in sorted(output.iterdir()) if path.suffix in {".xz", ".deb", ".rpm"}]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]
    sums.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sums


def signed(output: Path, key_path: Path | None) -> None:
    """Sign every file of the output folder; old signatures go."""
    for old in output.glob("*.minisig"):
        old.unlink()
    if key_path is None:
        say("not signed: give --key FILE")
        return
    from agent.errors import OutriderError
    from agent.models.minisign import own_key

    try:
        key = own_key(key_path, make=False)
    except OutriderError as error:
        raise CannotBuildError(str(error)) from error
    if key is None:
        raise CannotBuildError(f"{key_path} is not there; make a key with: minisign -G -W -s {key_path}")
    for path in sorted(output.iterdir()):
        path.with_name(f"{path.name}.minisig").write_text(key.sign(path.read_bytes(), path.name), encoding="utf-8")
    print(f"signed by {key.public}")


if __name__ == "__main__":
    sys.exit(main())
