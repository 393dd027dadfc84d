"""Make the development environment: ``.venv`` with everything that demo and tests need.

    python scripts/environment.py

Repeatable: what is there already is kept. Needs Python 3.11 and the standard library.
Packages come through pip as the machine configures it. Exit code 1 with one clear line
when something is missing that cannot be installed from here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import llama_wheel
from llama_wheel import CannotBuildError, say

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
CONSTRAINTS = ROOT / "constraints.txt"
MODELS = ROOT / "packaging" / "models.lock"  # carry the default models; their own dependencies are not needed


def main() -> int:
    try:
        python = virtual_environment()
        say("installing dependencies into .venv")
        pip(python, "install", "--upgrade", "--constraint", str(CONSTRAINTS), "pip")
        wheel = llama_wheel.wheel("native")
        pip(python, "install", "--force-reinstall", "--no-deps", "--no-index", str(wheel))
        pip(python, "install", "--constraint", str(CONSTRAINTS), "--group", "dev", "--editable", str(ROOT))
        pip(python, "install", "--no-deps", "--require-hashes", "-r", str(MODELS))
        ensure_llama_loads(python)
    except CannotBuildError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    STAMP.touch()
    return 0


def virtual_environment() -> Path:
    """Return the interpreter of ``.venv``, made first where there is none that works."""
    python = VENV / "bin" / "python"
    if (
        subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode
        if python.exists()
        else 1
    ):
        ensure_venv_module()
        say("making a virtual environment in .venv")
        run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    return python


def ensure_venv_module() -> None:
    """Debian ships Python without ensurepip; install it as root, else raise with the exact command."""
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if not shutil.which("apt-get"):
        raise CannotBuildError("this Python has no venv module; install it with your system's package manager")
    if os.geteuid() != 0:
        raise CannotBuildError(f"this Python cannot make virtual environments; run: sudo apt-get install -y {package}")
    say(f"installing {package}")
    llama_wheel.apt_install(package)


def ensure_llama_loads(python: Path) -> None:
    """Load the native library once: a missing run-time library shows here, with its name."""
    done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuildError(f"llama.cpp does not load: {done.stderr.strip().splitlines()[-1]}")


def pip(python: Path, *arguments: str) -> None:
    run([str(python), "-m", "pip", "-qq", "--disable-pip-version-check", *arguments])


def run(command: list[str]) -> None:
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise CannotBuildError(f"this failed: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
