"""What a hostile or broken target, or who stands in its place, can do: nothing is taken along, and nothing gets in."""

import asyncio
import datetime as dt
import json
import ssl
import tracemalloc

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fakes import cloud as fake
from fakes.cloud import Cloud, completion
from fakes.target_calls import probe, send, target_for

from agent.escalation.target import Blocked, Delivered, Offline, Rejected, Retry
from agent.settings import ConnectivitySettings

QUICK = ConnectivitySettings(connect_timeout_s=1.0)
MIB = 1 << 20


# --- redirects ------------------------------------------------------------------------


def server_context():
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


@pytest.fixture
def authority(tmp_path):
    found = trustme.CA()
    found.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    found.file = str(tmp_path / "ca.pem")
    return found


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_wherever_it_leads(authority, monkeypatch, code):
    """To plain HTTP, another port of the same host, another host's name, the same place, a file."""
    monkeypatch.setenv("BIG_KEY", "sk-test")
    context = server_context()
    authority.issue_cert("localhost").configure_cert(context)
    async with Cloud(tls=context, host="localhost") as cloud, Cloud(host="localhost") as thief:
        port = thief.port
        for to in (
            f"http://localhost:{port}/v1/chat/completions", f"//localhost:{port}/v1/chat/completions",
            f"http://127.0.0.1:{port}/", f"https://localhost:{port}/", f"{cloud.base_url}/elsewhere",
            "/v1/elsewhere", "", f"http://user:password@localhost:{port}/", "file:///etc/passwd",
        ):  # fmt: skip
            cloud.script(fake.redirect(to, code))
            target = target_for(cloud.base_url, ca_file=authority.file, api_key_env="BIG_KEY")
            outcome = await send(target)
            assert isinstance(outcome, Offline), to
            assert "sk-test" not in outcome.reason
        cloud.script_probes(fake.redirect(f"http://localhost:{port}/v1/models", code))
        target = target_for(cloud.base_url, ca_file=authority.file, api_key_env="BIG_KEY")
        assert isinstance(await probe(target), Offline)
        assert thief.requests == []
        assert [one for one in cloud.requests if "elsewhere" in one.path] == []


# --- TLS ------------------------------------------------------------------------------


def self_signed(folder, name="localhost", *, begins=-1, ends=1):
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now + dt.timedelta(days=begins)).not_valid_after(now + dt.timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "self.pem"
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    return path


def bad_context(problem, authority, folder):
    context = server_context()
    match problem:
        case "self-signed":
            context.load_cert_chain(self_signed(folder))
        case "not valid yet":
            later = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
            authority.issue_cert("localhost", not_before=later).configure_cert(context)
        case "no name":
            authority.issue_cert(common_name="localhost").configure_cert(context)
        case "another's wildcard":
            authority.issue_cert("*.localhost").configure_cert(context)
        case "old protocol":
            authority.issue_cert("localhost").configure_cert(context)
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        case "no certificate":
            context.set_ciphers("aNULL:@SECLEVEL=0")
            context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize(
    "problem", ["self-signed", "not valid yet", "no name", "another's wildcard", "old protocol", "no certificate"]
)
async def test_tls_that_proves_nothing_gets_nothing(authority, tmp_path, monkeypatch, problem):
    monkeypatch.setenv("BIG_KEY", "sk-test")
    async with Cloud(tls=bad_context(problem, authority, tmp_path), host="localhost") as cloud:
        for call in (send, probe):
            target = target_for(cloud.base_url, ca_file=authority.file, api_key_env="BIG_KEY", connectivity=QUICK)
            outcome = await call(target)
            assert isinstance(outcome, Offline)
            assert not outcome.left
        assert cloud.requests == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_the_old_protocol_would_be_spoken_by_a_client_that_allows_it(authority, tmp_path):
    """The control of the row above: that server works, it is our side that refuses."""
    context = ssl.create_default_context(cafile=authority.file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    async with Cloud(tls=bad_context("old protocol", authority, tmp_path), host="localhost") as cloud:
        reader, writer = await asyncio.open_connection("localhost", cloud.port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.1"
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


# --- replies --------------------------------------------------------------------------

GOOD = completion("Paris")


def body_of(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def choices(content, **more):
    return body_of(choices=[{"index": 0, "message": {"role": "assistant", "content": content, **more}}])


SHAPES = {
    "NaN": b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": NaN}}',
    "a list": b"[1, 2]", "a text": b'"choices"', "null": b"null", "nothing": b"", "blanks": b"   ",
    "no choices": b"{}", "empty choices": body_of(choices=[]), "choices no list": body_of(choices={"0": 1}),
    "choice no object": body_of(choices=["x"]), "message no object": body_of(choices=[{"message": "x"}]),
    "content a number": choices(7), "content a list": choices([{"type": "text"}]), "content an object": choices({}),
    "deep": b'{"choices": ' + b"[" * 100_000, "deep and closed": b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000, "no UTF-8": b'{"choices": "\xff\xfe"}', "half a surrogate": b'{"choices": "\\ud800"}',
    "a long number": b'{"created": ' + b"9" * 100_000 + b"}", "two values": body_of() + body_of(), "BOM": b"\xef\xbb\xbf" + body_of(),
    "tool calls wrong": choices(None, tool_calls=[{"function": 1}]), "tool calls no list": choices(None, tool_calls="x"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
async def test_a_reply_of_a_wrong_shape_is_no_answer(cloud, name):
    cloud.script(fake.raw(200, SHAPES[name]))
    outcome = await send(target_for(cloud.base_url))
    assert isinstance(outcome, Offline | Rejected | Retry), outcome


@pytest.mark.parametrize(
    "content_type", ["text/html", "text/plain", "application/octet-stream", "", "application/json; charset=utf-16"]
)
async def test_html_and_strange_content_types(cloud, content_type):
    page = b"<html><script>steal()</script></html>"
    cloud.script(fake.raw(200, page, content_type), fake.raw(200, page, "application/json"))
    for _ in range(2):
        assert isinstance(await send(target_for(cloud.base_url)), Offline)


async def test_duplicate_keys_are_read_one_way_and_never_crash(cloud):
    twice = body_of()[:-1] + b', "choices": [{"message": {"content": "second"}}]}'
    cloud.script(fake.raw(200, twice))
    outcome = await send(target_for(cloud.base_url))
    assert isinstance(outcome, Delivered)
    assert outcome.answer.text == "second"


@pytest.mark.parametrize("count", ["1e999", "-5", "1.5", '"9"', "9" * 400, "null"])
async def test_a_count_that_is_none_is_unknown(cloud, count):
    usage = f'"usage": {{"prompt_tokens": {count}, "completion_tokens": {count}}}'
    cloud.script(fake.raw(200, f'{{"choices": [{{"message": {{"content": "x"}}}}], {usage}}}'.encode()))
    outcome = await send(target_for(cloud.base_url))
    assert not isinstance(outcome, Delivered) or (outcome.answer.prompt_tokens, outcome.answer.output_tokens) == (0, 0)


def streams(start, piece):
    """Send ``start``, then ``piece`` for ever."""

    async def act(exchange):
        exchange.writer.write(start)
        while not exchange.writer.is_closing():
            exchange.writer.write(piece)
            await exchange.writer.drain()

    return act


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"x" * 65_536
ENDLESS = {
    "chunks": streams(CHUNKED, b"10000\r\n" + PIECE + b"\r\n"),
    "until closed": streams(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", PIECE),
    "longer than it says": streams(fake.head(200, 10), PIECE),
    "headers": streams(b"HTTP/1.1 200 OK\r\n", b"x-" + PIECE[:1000] + b": 1\r\n"),
    "one header": streams(b"HTTP/1.1 200 OK\r\nx: ", PIECE),
    "status line": streams(b"HTTP/1.1 ", PIECE),
    "interim replies": streams(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an error": streams(CHUNKED.replace(b"200 OK", b"500 No"), b"10000\r\n" + PIECE + b"\r\n"),
    "chunk extensions": streams(CHUNKED + b"1;", PIECE),
    "trailers": streams(CHUNKED + b"0\r\n", b"x-" + PIECE[:1000] + b": 1\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_a_reply_that_never_ends_is_cut_and_fills_no_memory(cloud, name):
    cloud.script(ENDLESS[name])
    tracemalloc.start()
    try:
        outcome = await send(target_for(cloud.base_url, timeout_s=1.0, max_reply_bytes=MIB))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, Offline | Rejected | Retry), outcome
    assert peak < 12 * MIB


async def test_16_mib_are_a_reply_and_a_byte_more_is_none(cloud):
    frame = len(json.dumps(completion("")))
    cloud.script(fake.ok("x" * (16 * MIB - frame)), fake.ok("x" * (16 * MIB - frame + 1)))
    assert isinstance(await send(target_for(cloud.base_url, timeout_s=60.0)), Delivered)
    assert isinstance(await send(target_for(cloud.base_url, timeout_s=60.0)), Rejected)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
async def test_a_bomb_is_not_unpacked(cloud, coding):
    import gzip

    bomb = gzip.compress(gzip.compress(b'{"choices": "' + b"x" * (64 * MIB // 8) + b'"}'))
    cloud.script(fake.raw(200, bomb, **{"content-encoding": coding}))
    tracemalloc.start()
    try:
        outcome = await send(target_for(cloud.base_url))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, Blocked)
    assert peak < 4 * MIB
