"""The shape of the code base: small files, field nouns, one error tree, no native library in the daemon."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from agent import errors

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("agent", "tests") for path in (ROOT / folder).rglob("*.py"))
BANNED = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_one_subject(path):
    assert len(path.read_text().splitlines()) <= 400
    assert not BANNED & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}


def test_packaging_is_no_package():
    # It would shadow the `packaging` distribution.
    assert not (ROOT / "packaging" / "__init__.py").exists()


def error_classes():
    return [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if issubclass(item, errors.OutriderError) and item is not errors.OutriderError
    ]


def test_every_error_stands_in_the_drawn_tree():
    for item in error_classes():
        assert item.__name__ in errors.__doc__, item
        assert 1 < item.exit_code < 128
        assert 400 <= item.status < 600


def test_error_codes_are_unique_within_a_branch():
    codes = {}
    for item in error_classes():
        if "code" in vars(item):
            assert codes.setdefault(item.code, item) is item


def test_the_daemon_starts_without_native_inference_or_admin_libraries():
    script = (
        "import sys, agent.daemon;"
        "bad = {'llama_cpp', 'numpy', 'sqlite_utils', 'jinja2', 'rich', 'openai', 'torch'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(bad)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
