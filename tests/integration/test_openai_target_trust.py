"""Whom a target is taken for: certificates, authorities, keys, addresses."""

import json
import ssl

import pytest
import trustme
from fakes.cloud import Cloud
from fakes.escalation_values import record, row
from fakes.target_calls import CONNECTIVITY, probe, send, target_for

from agent.errors import ConfigError
from agent.escalation.target import Blocked, Delivered, Offline, make_target
from agent.settings import ConnectivitySettings, TargetSettings
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy

# --- TLS ------------------------------------------------------------------------------


@pytest.fixture
def authority():
    return trustme.CA()


def tls_cloud(authority, name, **options):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, **options).configure_cert(context)
    return Cloud(tls=context, host="localhost")


@pytest.fixture
def ca_file(authority, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


async def test_a_private_authority_that_is_configured_is_trusted(authority, ca_file):
    async with tls_cloud(authority, "localhost") as cloud:
        assert isinstance(await send(target_for(cloud.base_url, ca_file=ca_file)), Delivered)


@pytest.mark.parametrize("problem", ["unknown authority", "wrong host", "no TLS"])
async def test_a_peer_that_cannot_prove_itself_is_offline_and_gets_nothing(authority, ca_file, problem, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-test")
    cloud = tls_cloud(authority, "other.example" if problem == "wrong host" else "localhost")
    if problem == "no TLS":
        cloud = Cloud(host="localhost")
    trusted = "" if problem == "unknown authority" else ca_file
    async with cloud:
        url = cloud.base_url.replace("http://", "https://")
        quick = ConnectivitySettings(connect_timeout_s=0.5)
        outcome = await send(target_for(url, ca_file=trusted, api_key_env="BIG_KEY", connectivity=quick))
        assert isinstance(outcome, Offline)
        assert not outcome.left
        assert cloud.requests == []


async def test_an_expired_certificate_is_offline(authority, ca_file):
    from datetime import UTC, datetime

    async with tls_cloud(authority, "localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC)) as cloud:
        assert isinstance(await send(target_for(cloud.base_url, ca_file=ca_file)), Offline)
        assert cloud.requests == []


# --- configuration that does not hold --------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "text", "says"), [(0o644, "sk-1", "chmod 600"), (0o600, "", "empty"), (0o600, "sk\n1", "characters")]
)
async def test_a_key_file_that_cannot_be_used_blocks(cloud, tmp_path, mode, text, says):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    outcome = await send(target_for(cloud.base_url, api_key_file=str(path)))
    assert isinstance(outcome, Blocked)
    assert says in outcome.reason
    assert "sk" not in outcome.reason
    assert not outcome.left
    assert cloud.requests == []


async def test_a_missing_key_or_authority_blocks(cloud, tmp_path):
    for fields, says in (
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"api_key_file": str(tmp_path / "none")}, "cannot be read"),
        ({"ca_file": str(tmp_path / "none")}, "ca_file"),
    ):
        outcome = await probe(target_for(cloud.base_url, **fields))
        assert isinstance(outcome, Blocked)
        assert says in outcome.reason
    assert cloud.requests == []


async def test_a_renewed_key_is_used_at_once(cloud, tmp_path):
    path = tmp_path / "key"
    path.write_text("first\n")
    path.chmod(0o600)
    target = target_for(cloud.base_url, api_key_file=str(path))
    await send(target)
    path.write_text("second\n")
    await send(target)
    assert [chat.headers["authorization"] for chat in cloud.chats] == ["Bearer first", "Bearer second"]


def test_a_target_is_made_by_name_and_checks_its_address():
    settings = TargetSettings(name="big", base_url="http://127.0.0.1:1/v1", model="m", egress=EgressPolicy.ALLOW)
    assert make_target(settings, CONNECTIVITY, RedactionSettings()).settings is settings
    assert (
        json.loads(make_target(settings, CONNECTIVITY, RedactionSettings()).outgoing(record(), row()).body)["model"]
        == "m"
    )
    with pytest.raises(ConfigError, match="big"):
        target_for("http://127.0.0.1:99999/v1")
