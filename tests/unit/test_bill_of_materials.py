"""What may be in the package: known origins, allowed licences."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bill_of_materials as bom  # noqa: E402

ENVIRONMENT = "/env/site-packages/"


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("MIT", ["MIT"]),
        ("MPL-2.0 AND MIT", ["MPL-2.0", "MIT"]),
        ("GPL-3.0-only OR BSD-2-Clause", ["BSD-2-Clause"]),
        ("(MIT OR Apache-2.0) AND Zlib", ["MIT", "Zlib"]),
        ("AGPL-3.0-only OR GPL-3.0-only", ["AGPL-3.0-only"]),
    ],
)
def test_of_a_choice_the_allowed_one_is_taken(expression, left):
    assert list(bom.terms(expression)) == left


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("", "does not say its licence"),
        ("AGPL-3.0-only", "AGPL-3.0-only, which is not allowed"),
        ("MIT AND GPL-2.0-only", "GPL-2"),
    ],
)
def test_a_licence_that_is_not_allowed_ends_the_build(licence, words):
    good = bom.Part("good", "1", "MIT", "pkg:pypi/good@1")
    bom.check_licences([good])
    with pytest.raises(bom.NotInOrderError, match=words):
        bom.check_licences([good, bom.Part("bad", "1", licence, "pkg:pypi/bad@1")])


@pytest.mark.parametrize(
    ("inside", "source", "owner"),
    [
        ("_internal/tool/a.so", ENVIRONMENT + "tool/a.so", "tool"),
        ("_internal/libz.so.1", "/lib/x86_64-linux-gnu/libz.so.1", "zlib"),
        ("_internal/libstdc++.so.6", "/lib/x86_64-linux-gnu/libstdc++.so.6", "GCC runtime"),
        ("_internal/libreadline.so.8", "/lib/x86_64-linux-gnu/libreadline.so.8", None),
        ("_internal/base_library.zip", "/build/base_library.zip", bom.PYTHON),
        ("_internal/tool-1.0.dist-info/METADATA", None, "tool"),
        ("_internal/stranger/file", None, None),
        ("outrider", None, "outrider"),
    ],
)
def test_every_file_has_one_origin_or_none(inside, source, owner):
    sources = {} if source is None else {inside.removeprefix("_internal/"): source}
    owners = {ENVIRONMENT + "tool/a.so": "tool"}
    assert bom.owner_of(Path(inside), sources, owners, {"tool": None}) == owner


def test_names_of_distributions_are_compared_as_pip_does():
    assert bom.normal("Foo_Bar.baz") == "foo-bar-baz"
