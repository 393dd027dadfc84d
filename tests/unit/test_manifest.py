"""The manifest that ships, and what is refused in one."""

import json

import msgspec
import pytest

from agent.errors import ConfigError, ModelNotFound
from agent.models.manifest import load_manifest, parse_manifest
from agent.settings import EngineSettings

ENTRY = {
    "name": "tiny",
    "title": "Tiny",
    "licence": "MIT",
    "context_tokens": 4096,
    "format": "gguf",
    "family": "llama",
    "files": [{"name": "tiny.gguf", "bytes": 10, "sha256": "0" * 64}],
    "source": {
        "kind": "package",
        "files": {"tiny.gguf": [{"distribution": "tiny-model", "version": "1.0", "path": "tiny_model/tiny.gguf"}]},
    },
}
PART = ENTRY["source"]["files"]["tiny.gguf"][0]
FILE = ENTRY["files"][0]
HUB = {"kind": "hub", "repository": "owner/tiny", "pin": "first-pull"}


def source(**parts):
    return {"kind": "package", "files": {name: list(found) for name, found in parts.items()}}


def document(*models, **more):
    return json.dumps({"schema": 1, "models": models, **more})


def test_the_shipped_manifest_holds_and_has_the_default_model():
    spec = load_manifest().get(EngineSettings().model)
    assert spec.licence == "Apache-2.0"
    assert spec.context_tokens >= EngineSettings().context_tokens
    assert "system" not in spec.chat_template


def test_the_names_of_a_parsed_manifest():
    manifest = parse_manifest(document(ENTRY))
    assert manifest.get("tiny").source.requirements == ("tiny-model==1.0",)


def test_a_hub_entry_is_pinned_by_its_first_pull():
    spec = parse_manifest(document({**ENTRY, "files": [{"name": "a"}, {"name": "b"}], "source": HUB})).get("tiny")
    assert not spec.pinned
    fixed = {**HUB, "pin": "commit", "revision": "a" * 40}
    assert parse_manifest(document({**ENTRY, "source": fixed})).get("tiny").pinned


@pytest.mark.parametrize("wrong", ["tinny", "Tiny", "tin"])
def test_an_unknown_name_gets_the_nearest_ones_and_never_a_substitute(wrong):
    with pytest.raises(ModelNotFound, match="tiny") as caught:
        parse_manifest(document(ENTRY)).get(wrong)
    assert caught.value.param == "model"


def test_an_unlike_name_gets_the_known_ones_and_is_cut():
    with pytest.raises(ModelNotFound, match="known are tiny") as caught:
        parse_manifest(document(ENTRY)).get("x" * 10_000)
    assert len(str(caught.value)) < 200


WRONG = {
    "not JSON": ("{", "Expecting"),
    "unknown key": (document({**ENTRY, "colour": "red"}), "unknown field `colour`"),
    "unknown key in a table": (document({**ENTRY, "files": [{**FILE, "md5": ""}]}), "unknown field `md5`"),
    "unknown key on top": (document(ENTRY, models2=[]), "unknown field `models2`"),
    "missing key": (document({k: v for k, v in ENTRY.items() if k != "licence"}), "missing required field `licence`"),
    "another schema": (document(ENTRY).replace('"schema": 1', '"schema": 2'), "schema"),
    "duplicate key": ('{"schema": 1, "schema": 1, "models": []}', "'schema' is written twice"),
    "no models": (document(), "length >= 1"),
    "name twice": (
        document(ENTRY, {**ENTRY, "files": [{**FILE, "sha256": "1" * 64}]}),
        "name tiny is used twice",
    ),
    "model twice": (document(ENTRY, {**ENTRY, "name": "other"}), "digest 0+ is used twice"),
    "digest": (document({**ENTRY, "files": [{**FILE, "sha256": "0" * 63}]}), "sha256"),
    "path that climbs": (
        document({**ENTRY, "source": source(**{"tiny.gguf": [{**PART, "path": "../../etc/passwd"}]})}),
        "path",
    ),
    "absolute path": (
        document({**ENTRY, "source": source(**{"tiny.gguf": [{**PART, "path": "/etc/passwd"}]})}),
        "path",
    ),
    "file without parts": (document({**ENTRY, "source": source(**{"tiny.gguf": []})}), "length >= 1"),
    "file of another name": (document({**ENTRY, "source": source(other=[PART])}), "differ in their names"),
    "more files than packages carry": (
        document({**ENTRY, "files": [FILE, {**FILE, "name": "b"}]}),
        "differ in their names",
    ),
    "two files at one URL": (
        document({**ENTRY, "files": [FILE, {**FILE, "name": "b"}], "source": {"kind": "url", "url": "https://a/b"}}),
        "a URL carries one file",
    ),
    "package without a digest": (document({**ENTRY, "files": [{"name": "tiny.gguf"}]}), "need bytes and sha256"),
    "size without digest": (
        document({**ENTRY, "files": [{"name": "tiny.gguf", "bytes": 1}], "source": HUB}),
        "go together",
    ),
    "digest that nobody saw": (document({**ENTRY, "source": HUB}), "nothing is known yet"),
    "pinned without a commit": (document({**ENTRY, "source": {**HUB, "pin": "commit"}}), "needs the revision"),
    "another hub path": (document({**ENTRY, "source": {**HUB, "repository": "../x"}}), "repository"),
    "plain http": (document({**ENTRY, "source": {"kind": "url", "url": "http://a/b"}}), "url"),
    "unknown source": (document({**ENTRY, "source": {"kind": "torrent"}}), "torrent"),
    "name with a slash": (document({**ENTRY, "name": "a/b"}), "name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_by_name(case):
    text, reason = WRONG[case]
    with pytest.raises(ValueError, match=reason):
        parse_manifest(text)


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "manifest.json"
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
        load_manifest(path)
    path.write_text(document({**ENTRY, "colour": "red"}))
    with pytest.raises(ConfigError, match=r"manifest\.json does not hold: .*colour"):
        load_manifest(path)


def test_values_are_frozen():
    with pytest.raises(AttributeError):
        parse_manifest(document(ENTRY)).get("tiny").name = "other"
    assert msgspec.json.encode(parse_manifest(document(ENTRY)))


def test_models_may_share_files_but_not_all_of_them():
    two = {**ENTRY, "name": "other", "files": [FILE, {**FILE, "name": "b", "sha256": "1" * 64}]}
    two["source"] = source(**{"tiny.gguf": [PART], "b": [PART]})
    assert len(parse_manifest(document(ENTRY, two)).models) == 2
    with pytest.raises(ValueError, match="is used twice"):
        parse_manifest(document(two, {**two, "name": "third"}))
