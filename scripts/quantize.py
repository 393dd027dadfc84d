"""Make a smaller model of a larger one: the same as ``outrider quantize``, from a source tree.

python scripts/quantize.py MODEL --target cpu|npu|phone
python scripts/quantize.py --help

Runs in the environment of the tree (.venv) when it was set up with ``make``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    own = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python = str(own) if own.exists() else sys.executable
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [python, "-m", "agent", "quantize", *sys.argv[1:]]
    with subprocess.Popen(command, env=environment) as child:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the child has it too, and says what it means
                continue


if __name__ == "__main__":
    sys.exit(main())
