"""Named prefixes as an operator meets them: configuration, API, command line."""

import asyncio

import pytest
from fakes.api_server import ADMIN, served
from fakes.command_line import as_json, outrider
from fakes.daemon_process import DaemonProcess
from unit.test_prefix_store import MIB, prefix, write

from agent import configuration
from agent.errors import ConfigError
from agent.storage import keys
from agent.storage.prefix_store import PrefixStore
from agent.types import Message


def load(tmp_path, toml):
    path = tmp_path / "outrider.toml"
    path.write_text(toml)
    return configuration.load(path, environ={"HOME": str(tmp_path)})


def test_a_prefix_is_a_system_prompt_with_examples(tmp_path):
    (tmp_path / "support.txt").write_text("Be kind. Größe\n")
    loaded = load(
        tmp_path,
        """
        [[prefixes]]
        name = "support"
        system_file = "support.txt"
        [[prefixes.examples]]
        user = "Hi"
        assistant = "Hello"
        [[prefixes]]
        name = "brief"
        model = "other"
        system = "Be brief."
        """,
    )
    support, brief = configuration.named_prefixes(loaded)
    assert support.messages == (
        Message("system", "Be kind. Größe\n"),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
    )
    assert (support.model, brief.model) == (loaded.settings.engine.model, "other")


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ('name = "a"', "it is empty"),
        ('name = "a"\nsystem = "x"\nsystem_file = "y"', "keep one"),
        ('name = "a"\nsistem = "x"', "did you mean system"),
        ('name = "a"\nsystem = "x"\n[[prefixes]]\nname = "a"\nsystem = "y"', "used twice"),
        ('name = "A b"\nsystem = "x"', "prefixes"),
        ('name = "a"\nsystem_file = "absent.txt"', "cannot be read"),
        ('name = "a"\nsystem_file = "latin.txt"', "not UTF-8"),
        ('name = "a"\nsystem_file = "empty.txt"', "is empty"),
    ],
)
def test_what_is_wrong_with_one_is_told(tmp_path, toml, reason):
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ConfigError, match=reason):
        configuration.named_prefixes(load(tmp_path, f"[[prefixes]]\n{toml}\n"))


def test_the_api_lists_shows_and_erases(tmp_path):
    with served(tmp_path) as api:
        with api.client() as client:
            data = client.get("/v1/prefixes").json()["data"]
            assert [(one["name"], one["state"], one["saved"]) for one in data] == [
                ("cities", "loading", None),
                ("brief", "loading", None),
            ]
            assert client.get("/v1/prefixes/brief").json() == data[1]
            assert client.get("/v1/prefixes/absent").status_code == 404
            assert client.post("/v1/prefixes/purge", json={"all": True}).status_code == 403
        with api.client(ADMIN) as client:
            assert client.post("/v1/prefixes/purge", json={"all": True}).json() == {"purged": 0}
            assert client.post("/v1/prefixes/purge", json={"names": ["cities"]}).json() == {"purged": 0}
            for wrong in ({}, {"names": [1]}, {"names": [], "all": True}, {"name": "x"}):
                assert client.post("/v1/prefixes/purge", json=wrong).status_code == 400


def test_a_salt_goes_with_the_request(tmp_path):
    with served(tmp_path) as api, api.client() as client:
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
        assert client.post("/v1/chat/completions", json={**body, "cache_salt": "mine"}).status_code == 200
        assert api.engine.asked[-1].cache_salt == "mine"
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert api.engine.asked[-1].cache_salt is None
        refused = client.post("/v1/chat/completions", json={**body, "cache_salt": ""})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


async def store_two(data):
    store = PrefixStore(data, keys.load(data).material, most_bytes=20 * MIB)
    for name in ("kept", "gone"):
        await write(store, prefix(name, model="smollm2-135m-instruct", size=MIB))
    await store.close()


PREFIX = '[[prefixes]]\nname = "kept"\nsystem = "Be kind."\n'


def test_the_command_line_does_with_and_without_a_daemon(tmp_path):
    daemon = DaemonProcess(tmp_path, PREFIX).start()
    assert [one["name"] for one in as_json(daemon, "prefixes", "list")] == ["kept"]
    assert "kept" in outrider(daemon, "prefixes", "show", "kept").stdout
    assert as_json(daemon, "prefixes", "purge", "--yes") == {"purged": 0}
    daemon.stop()
    asyncio.run(store_two(daemon.data))
    (kept,) = as_json(daemon, "prefixes", "list")
    assert kept["saved"]["tokens"] == 40
    assert "1.0 MiB" in outrider(daemon, "prefixes", "show", "kept").stdout
    assert "erased: 1" in outrider(daemon, "prefixes", "purge", "kept", "--yes").stdout
    assert len(list((daemon.data / "prefixes").iterdir())) == 1


def test_what_leaves_the_configuration_leaves_the_disk_at_the_next_start(tmp_path):
    daemon = DaemonProcess(tmp_path, PREFIX).start()
    daemon.stop()
    asyncio.run(store_two(daemon.data))
    (tmp_path / "data" / "prefixes" / "of-a-killed-daemon.unfinished").write_bytes(b"half")
    daemon.start()
    daemon.stop()
    assert [one["name"] for one in as_json(daemon, "prefixes", "list") if one["saved"]] == ["kept"]
    assert len(list((daemon.data / "prefixes").iterdir())) == 1
