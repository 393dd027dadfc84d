"""What the package must hold is read from the sources, late imports too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import module_check

SOURCE = """
import json
from nacl import signing
def late():
    from xml.dom import minidom
    from . import nothing
"""


def test_late_imports_and_modules_named_in_a_from_are_wanted(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(SOURCE)
    wanted = set(module_check.imported(package))
    assert wanted == {"package", "package.part", "json", "nacl", "nacl.signing", "xml.dom", "xml.dom.minidom"}
    assert module_check.found("xml.dom.minidom")
    assert not module_check.found("json.loads")
    assert not module_check.found("no_such_module.part")
