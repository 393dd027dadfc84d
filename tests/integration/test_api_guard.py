"""What a browser, a stranger or a broken client sends is refused, in the shape of every other error."""

import json
import re
import socket

import pytest
from fakes.api_server import USER, chat, served

from agent.api import server as server_module
from agent.api import wire
from agent.settings import ServerSettings

LIMIT = 64 * 1024
ROUTES = [
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/models"), ("GET", "/v1/models/small"),
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/classify"), ("GET", "/v1/requests"), ("GET", "/v1/requests/x"),
    ("GET", "/v1/requests/x/events"), ("GET", "/v1/queue"), ("GET", "/v1/queue/x"), ("POST", "/v1/queue/x/retry"),
    ("POST", "/v1/queue/x/cancel"), ("POST", "/v1/queue/release"), ("POST", "/v1/queue/purge"),
    ("POST", "/v1/queue/drain"), ("POST", "/v1/queue/x/approve"), ("POST", "/v1/queue/x/edit"), ("GET", "/v1/queue/x/messages"), ("GET", "/v1/egress"), ("GET", "/v1/budget"), ("GET", "/v1/egress/verify"), ("POST", "/v1/admin/reload"),
    ("GET", "/v1/prefixes"), ("GET", "/v1/prefixes/x"), ("POST", "/v1/prefixes/purge"),
    ("POST", "/v1/embeddings"), ("POST", "/v1/rerank"), ("POST", "/v1/tag"),
    ("GET", "/v1/tasks"), ("POST", "/v1/tasks"), ("GET", "/v1/tasks/x"), ("DELETE", "/v1/tasks/x"),
    ("GET", "/v1/tasks/x/head"), ("PUT", "/v1/tasks/x/head"), ("PUT", "/v1/tasks/x/calibration"),
    ("GET", "/v1/tasks/x/calibration"), ("POST", "/v1/tasks/x/signals"), ("GET", "/v1/tasks/x/examples"), ("PUT", "/v1/tasks/x/examples"),
    ("GET", "/v1/tasks/x/appraiser"), ("PUT", "/v1/tasks/x/appraiser"),
    ("POST", "/v1/feedback"), ("GET", "/v1/feedback"), ("GET", "/v1/review"),
    ("GET", "/v1/aliases"), ("POST", "/v1/aliases/promote"), ("POST", "/v1/aliases/rollback"),
    ("POST", "/v1/responses"), ("GET", "/v1/responses/x"), ("DELETE", "/v1/responses/x"),
    ("POST", "/v1/responses/x/cancel"), ("GET", "/v1/responses/x/input_items"),
    ("GET", "/v1/report"), ("GET", "/v1/report/requests"), ("POST", "/v1/tasks/x/trials"),
    ("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/x"), ("DELETE", "/v1/files/x"),
    ("GET", "/v1/files/x/content"), ("POST", "/v1/batches"), ("GET", "/v1/batches"), ("GET", "/v1/batches/x"),
    ("POST", "/v1/batches/x/cancel"),
    ("GET", "/v1/digest"), ("GET", "/openapi.json"), ("POST", "/v1/digest/seen"), ("POST", "/v1/erase"),
    ("GET", "/"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    settings = ServerSettings(
        max_body_bytes=LIMIT, allowed_hosts=("device.lan",), allowed_origins=("https://app.test",)
    )
    with served(tmp_path_factory.mktemp("guard") / "data", server=settings) as server:
        yield server


def test_every_route_is_in_this_list(api):
    known = {re.sub(r"\{[^}]*\}", "x", route.path) for route in api.server.config.app.routes}
    assert {path.replace("/small", "/x") for _, path in ROUTES} == known | {"/", "/nowhere"}


def every_route(api, token=USER):
    with api.client(token) as client:
        for method, path in ROUTES:
            yield client, method, path


def shaped(response, status, code=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert code is None or error["code"] == code
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.test"},
        {"host": "evil.test:8484"},
        {"origin": "https://evil.test"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8484"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.test", "origin": "https://app.test"},
    ],
)
def test_strange_hosts_and_pages_are_refused_on_every_route(api, headers):
    for client, method, path in every_route(api):
        shaped(client.request(method, path, headers=headers), 403, "forbidden")


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic dTpw", f"Bearer {USER}x"])
def test_no_route_but_health_without_a_token(api, authorization):
    headers = {"authorization": authorization} if authorization else {}
    for client, method, path in every_route(api, None):
        if path != "/healthz":
            shaped(client.request(method, path, headers=headers), 401, "invalid_api_key")


def test_a_token_in_the_address_is_no_token(api):
    with api.client(None) as client:
        shaped(client.get(f"/v1/models?token={USER}&api_key={USER}"), 401)


def test_health_needs_no_token_and_tells_nothing(api):
    with api.client(None) as client:
        response = client.get("/healthz")
    assert (response.status_code, response.text) == (200, '{"status":"ok"}')
    assert set(response.headers) == {
        "date",
        "content-length",
        "content-type",
        "cache-control",
        "x-content-type-options",
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:80", "device.lan"])
def test_known_hosts_are_let_in(api, host):
    with api.client() as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_listed_origin_is_let_in_but_gets_no_cors_headers(api):
    with api.client() as client:
        response = client.get("/v1/models", headers={"origin": "https://app.test", "sec-fetch-site": "cross-site"})
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control")]
        asked = {"origin": "https://app.test", "access-control-request-method": "POST"}
        shaped(client.options("/v1/chat/completions", headers=asked), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx",
     "application/json; charset=latin-1", "text/plain; application/json", "application/json, text/plain"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/queue/release"])
def test_other_content_types_are_refused(api, content_type, path):
    headers = {"content-type": content_type} if content_type else {}
    token = USER if "chat" in path else server_token()
    with api.client(token) as client:
        shaped(client.post(path, content=json.dumps(chat("x")), headers=headers), 415, "unsupported_media_type")


def server_token():
    from fakes.api_server import ADMIN

    return ADMIN


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_taken(api, content_type):
    with api.client() as client:
        response = client.post(
            "/v1/chat/completions", content=json.dumps(chat("hello")), headers={"content-type": content_type}
        )
    assert response.status_code == 200


def test_compressed_bodies_are_refused(api):
    with api.client() as client:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        shaped(client.post("/v1/chat/completions", content=b"x", headers=headers), 415)


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/", 404, "not_found"), ("GET", "/v1/models/", 404, None), ("GET", "/v1/chat/completions/", 404, "not_found"),
    ("GET", "/v1/chat/completions", 405, "method_not_allowed"), ("DELETE", "/v1/models/small", 405, "method_not_allowed"),
    ("POST", "/v1/requests", 405, "method_not_allowed"), ("TRACE", "/healthz", 405, "method_not_allowed"),
    ("GET", "/v1/models/..%2f..%2fetc", 404, None), ("GET", "/%ff%fe", 404, "not_found"),
])  # fmt: skip
def test_unknown_paths_and_methods(api, method, path, status, code):
    with api.client() as client:
        response = client.request(method, path)
    shaped(response, status, code)
    if status == 405:
        assert response.headers["allow"]


# --- bodies ---------------------------------------------------------------------------


def test_a_body_at_the_limit_passes_and_above_it_is_413(api):
    short = len(json.dumps(chat("")))
    with api.client() as client:
        assert client.post("/v1/chat/completions", content=padded(LIMIT - short), headers=JSON).status_code == 200
        shaped(
            client.post("/v1/chat/completions", content=padded(LIMIT - short + 1), headers=JSON), 413, "body_too_large"
        )
        shaped(client.post("/v1/chat/completions", content=padded(5 << 20), headers=JSON), 413, "body_too_large")


def test_a_chunked_body_is_bounded_while_it_arrives(api):
    with api.client() as client:
        pieces = (b" " * 8192 for _ in range(100))
        shaped(client.post("/v1/chat/completions", content=pieces, headers=JSON), 413, "body_too_large")
        text = json.dumps(chat("hello")).encode()
        pieces = (text[at : at + 7] for at in range(0, len(text), 7))
        assert client.post("/v1/chat/completions", content=pieces, headers=JSON).status_code == 200


JSON = {"content-type": "application/json"}


def padded(size):
    return json.dumps(chat("x" * size)).encode()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":1e999}', b"[" * 5000,
     b'{"a":' * 5000, b"\xef\xbb\xbf{}", b'{"model":"small"} x'],
)  # fmt: skip
def test_what_is_not_strict_json_is_400(api, body):
    with api.client() as client:
        shaped(client.post("/v1/chat/completions", content=body, headers=JSON), 400, "invalid_json")


def test_a_body_that_does_not_arrive_is_408(api, monkeypatch):
    monkeypatch.setattr(wire, "BODY_TIMEOUT_S", 0.05)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {USER}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    answer = api.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer


# --- HTTP itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_in_the_same_shape(api, data):
    answer = api.raw(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("in_one_piece", [True, False])
def test_large_headers_are_refused(api, in_one_piece):
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"y" * (1 << 17)
    answer = api.raw(head + b"\r\n\r\n" if in_one_piece else head)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")) or answer == b""


def test_headers_that_came_whole_are_bounded_too(api):
    with api.client() as client:
        assert client.get("/healthz", headers={"x": "y" * 30_000}).status_code == 200
        shaped(client.get("/healthz", headers={"x": "y" * 33_000}), 431, "headers_too_large")
        shaped(client.get("/healthz?" + "y" * 33_000), 431, "headers_too_large")


def test_http_1_0_without_a_host_is_refused(api):
    assert api.raw(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")


def test_slow_headers_are_cut_and_do_not_hold_up_others(api, monkeypatch):
    monkeypatch.setattr(server_module, "HEADER_TIMEOUT_S", 0.2)
    slow = [socket.create_connection(("127.0.0.1", api.port), timeout=20) for _ in range(50)]
    for connection in slow[::2]:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
    assert api.get("/v1/models").status_code == 200
    assert [connection.recv(1) for connection in slow] == [b""] * 50
    for connection in slow:
        connection.close()


def test_the_server_is_configured_for_slow_and_hostile_clients(api):
    config = api.server.config
    assert config.h11_max_incomplete_event_size == 32 * 1024
    assert (config.server_header, config.proxy_headers, config.access_log, config.ws) == (False, False, False, "none")
    assert config.timeout_keep_alive <= 60
