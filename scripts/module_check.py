"""Is everything in the package that the program imports, also late and by native code?

    python scripts/module_check.py FOLDER

Run by ``scripts/bundle.py`` with the interpreter of the package's environment: what the sources of ``agent`` import, and
this environment has, must load inside the bundled program. Exit code 1 naming the modules that do not.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"readline"}  # for its licence; whoever imports it does without


def main(arguments: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    program = Path(arguments[0]) / "outrider"
    wanted = sorted(set(imported(ROOT / "agent")) - LEFT_OUT)
    names = [name for name in wanted if found(name)]
    done = subprocess.run([str(program), "load-modules", *names], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        print("a module is missing in the bundle: add it to `hidden` in packaging/outrider.spec", file=sys.stderr)
        return 1
    print(f"{len(names)} modules load")
    return 0


def imported(package: Path) -> Iterator[str]:
    """Yield every module that a package's sources import anywhere; names imported from one as modules of their own."""
    for path in package.rglob("*.py"):
        yield ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def found(name: str) -> bool:
    """Whether this environment has a module of that name; a name inside a module is none."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
