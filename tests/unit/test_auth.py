"""Tokens and the checks that keep web pages and other users out."""

import os
import stat

import pytest
from starlette.datastructures import Headers

from agent.api.auth import Role, Tokens, caller_of, check_caller, load_tokens
from agent.egress_settings import KeySettings
from agent.errors import Forbidden, KeyProblem, Unauthorized
from agent.settings import ServerSettings

TOKENS = Tokens("u" * 40, "a" * 40)
SERVER = ServerSettings(allowed_hosts=("device.lan",), allowed_origins=("https://app.test",))


def headers(**values):
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in values.items()]
    return Headers(raw=pairs)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8484", "localhost", "LOCALHOST:1", "[::1]", "[::1]:8484", "device.lan", "Device.Lan:99"],
)
def test_hosts_that_are_let_in(host):
    check_caller(headers(host=host), SERVER)


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.test", "evil.test:8484", "localhost.evil.test", "127.0.0.1.evil.test", "127.0.0.2", "0.0.0.0",
        "localhost@evil.test", "evil.test#localhost", "localhost:8484:1", "localhost:", "localhost:port", "localhost.",
        "[::1", "[::1]x", "[::2]", "::1", "localhost, evil.test", "127.1", "2130706433", "localhost/", " ",
        "localhost:\u00b2",
    ],
)  # fmt: skip
def test_hosts_that_are_refused(host):
    with pytest.raises(Forbidden):
        check_caller(headers(host=host), SERVER)


def test_a_missing_or_double_host_is_refused():
    with pytest.raises(Forbidden):
        check_caller(headers(), SERVER)
    with pytest.raises(Forbidden):
        check_caller(Headers(raw=[(b"host", b"localhost"), (b"host", b"localhost")]), SERVER)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "new-thing", ""])
def test_fetches_from_other_pages_are_refused(site):
    with pytest.raises(Forbidden):
        check_caller(headers(host="localhost", sec_fetch_site=site), SERVER)


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_typed_addresses_are_let_in(site):
    check_caller(headers(host="localhost", sec_fetch_site=site), SERVER)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.test",
        "http://localhost:8484",
        "http://app.test",
        "https://app.test:444",
        "https://app.test/",
        "",
    ],
)
def test_origins_that_are_refused(origin):
    with pytest.raises(Forbidden):
        check_caller(headers(host="localhost", origin=origin), SERVER)


def test_null_is_refused_even_when_it_is_listed():
    with pytest.raises(Forbidden):
        check_caller(headers(host="localhost", origin="null"), ServerSettings(allowed_origins=("null",)))


def test_a_listed_origin_is_let_in_from_another_site():
    check_caller(headers(host="localhost", origin="https://app.test", sec_fetch_site="cross-site"), SERVER)
    with pytest.raises(Forbidden):
        check_caller(
            Headers(raw=[(b"host", b"localhost"), (b"origin", b"https://app.test"), (b"origin", b"https://evil.test")]),
            SERVER,
        )


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic " + "u" * 40, "u" * 40, "Bearer " + "u" * 39, "Bearer " + "u" * 41, "Bearer caf\xe9",
     "Bearer " + "U" * 40],
)  # fmt: skip
def test_wrong_tokens(value):
    with pytest.raises(Unauthorized):
        caller_of(headers(authorization=value), TOKENS)


def test_right_tokens():
    assert caller_of(headers(authorization="Bearer " + "u" * 40), TOKENS).role is Role.USER
    assert caller_of(headers(authorization="bearer " + "a" * 40), TOKENS).role is Role.ADMIN
    with pytest.raises(Unauthorized):
        caller_of(headers(), TOKENS)
    twice = Headers(raw=[(b"authorization", b"Bearer " + b"u" * 40)] * 2)
    with pytest.raises(Unauthorized):
        caller_of(twice, TOKENS)


def test_tokens_are_made_once_private_and_different(tmp_path):
    first = load_tokens(tmp_path)
    assert first == load_tokens(tmp_path)
    assert first.user_token != first.admin_token
    assert len(first.user_token) >= 43
    assert first.user_token not in repr(first)
    for name in ("token", "admin-token"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin-token", "token"]


@pytest.mark.parametrize("content", ["", "short", "x" * 31, "two words " * 9, "caf\u00e9" * 20])
def test_a_file_that_holds_no_token_is_refused(tmp_path, content):
    load_tokens(tmp_path)
    (tmp_path / "token").write_text(content)
    with pytest.raises(KeyProblem, match="token"):
        load_tokens(tmp_path)


def test_a_token_that_others_can_read_is_refused(tmp_path):
    load_tokens(tmp_path)
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(KeyProblem, match="read by others"):
        load_tokens(tmp_path)


def test_links_and_other_things_are_refused(tmp_path):
    load_tokens(tmp_path)
    (tmp_path / "token").rename(tmp_path / "elsewhere")
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyProblem):
        load_tokens(tmp_path)
    (tmp_path / "token").unlink()
    (tmp_path / "token").symlink_to(tmp_path / "nothing")
    with pytest.raises(KeyProblem):
        load_tokens(tmp_path)
    (tmp_path / "token").unlink()
    (tmp_path / "token").mkdir(0o700)
    with pytest.raises(KeyProblem):
        load_tokens(tmp_path)
    (tmp_path / "token").rmdir()
    os.mkfifo(tmp_path / "token", 0o600)
    with pytest.raises(KeyProblem):
        load_tokens(tmp_path)


def test_a_caller_has_a_token_of_its_own_and_the_policy_that_goes_with_it(tmp_path):
    keys = (KeySettings(name="desk", egress="never"), KeySettings(name="lab", egress="redact"))
    found = load_tokens(tmp_path, keys)
    assert found == load_tokens(tmp_path, keys)  # drawn once
    desk = (tmp_path / "keys" / "desk").read_text().strip()
    caller = caller_of(headers(authorization=f"Bearer {desk}"), found)
    assert (caller.role, caller.key.name, caller.key.egress) == (Role.USER, "desk", "never")
    assert caller_of(headers(authorization=f"Bearer {found.user_token}"), found).key is None
    assert desk not in repr(found)
    assert desk not in repr(caller)


def test_two_callers_do_not_share_a_token(tmp_path):
    path = tmp_path / "shared"
    path.write_text("x" * 40)
    path.chmod(0o600)
    keys = [KeySettings(name=name, token_file=str(path)) for name in ("one", "two")]
    with pytest.raises(KeyProblem, match="same token"):
        load_tokens(tmp_path, keys)
