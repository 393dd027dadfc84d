"""The HTTP client of the command line: loopback, one token, OutriderError for every failure."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import msgspec

from agent import executable
from agent.errors import ConfigError, DaemonUnreachable, OutriderError, StorageError, Unauthorized
from agent.settings import Settings
from agent.storage.instance_lock import is_held

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0  # for calls that ask for stored things; answers have the request's deadline
# A daemon that listens on every address is reached from here on the loopback one.
ON_THIS_MACHINE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not listened on
SSE_DATA = "data:"
SSE_END = "[DONE]"


class DaemonAddress(msgspec.Struct, frozen=True):
    """What a running daemon writes beside its database."""

    pid: int
    url: str  # without /v1
    started: str = ""  # with the pid it names one process; empty where the system does not tell


class RemoteError(OutriderError):
    """An error object that the daemon sent; code and exit code are those of its class."""

    def __init__(self, message: str, *, code: str, status: int, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code
        self.status = status
        known = _by_code().get(code)
        self.exit_code = known.exit_code if known else (2 if 400 <= status < 500 else OutriderError.exit_code)
        self.retryable = known.retryable if known else False


def _by_code() -> dict[str, type[OutriderError]]:
    found: dict[str, type[OutriderError]] = {}
    waiting: list[type[OutriderError]] = [OutriderError]
    while waiting:
        kind = waiting.pop()
        if kind is not RemoteError:
            found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def find_daemon(data_path: Path) -> DaemonAddress | None:
    """Return the address of the daemon of this data directory, None when none runs."""
    try:
        address = msgspec.json.decode((data_path / "daemon.json").read_bytes(), type=DaemonAddress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"{data_path / 'daemon.json'} cannot be read: {error}; restart the daemon") from error
    # The file outlives a daemon that was killed; its pid and its port may be another program's by
    # now, which must not get the token. The lock cannot be stale: it ends with the process.
    if address.started != executable.started(address.pid) or not is_held(data_path):
        return None
    url = httpx2.URL(address.url)
    return msgspec.structs.replace(address, url=str(url.copy_with(host=ON_THIS_MACHINE.get(url.host, url.host))))


def read_token(data_path: Path, *, admin: bool = False) -> str:
    """Return the token for this data directory; ``OUTRIDER_API_KEY`` and ``OUTRIDER_ADMIN_KEY`` win."""
    if given := os.environ.get("OUTRIDER_ADMIN_KEY" if admin else "OUTRIDER_API_KEY"):
        return given
    path = data_path / ("admin-token" if admin else "token")
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise Unauthorized(f"there is no token at {path}: `outrider serve` makes it at its first start") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthorized(f"{path} cannot be read ({error}): run this as the user who runs the daemon") from error


class DaemonClient:
    """Calls to one daemon. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        address = find_daemon(settings.data_path)
        if address is None:
            raise DaemonUnreachable(
                f"no daemon runs on {settings.data_path}: start it with `outrider serve` (in another terminal)"
            )
        self._settings = settings
        self.url = address.url.rstrip("/")
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            verify=_trust(settings),
            trust_env=False,  # a proxy has no business between this command and its own machine
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        """Return the JSON of a GET; None values are left out of the query."""
        return self._call("GET", path, query=query)

    def get_as_admin(self, path: str, **query: object) -> Any:
        """Return the JSON of a GET, with the token for admin verbs; None values are left out of the query."""
        return self._call("GET", path, admin=True, query=query)

    def get_bytes(self, path: str, **query: object) -> bytes:
        """Return the body of a GET as it came."""
        with self._errors():
            response = self._http.get(path, params=_given(query), headers=self._headers(admin=False))
            _raise_for(response)
            return response.content

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        admin: bool = False,
        timeout_s: float = READ_TIMEOUT_S,
        **query: object,
    ) -> Any:
        """Return the JSON of a POST. ``admin`` uses the token for admin verbs."""
        given = {} if body is None else body
        return self._call("POST", path, body=given, admin=admin, query=query, timeout_s=timeout_s)

    def put(self, path: str, body: Mapping[str, Any], *, timeout_s: float = READ_TIMEOUT_S) -> Any:
        """Return the JSON of a PUT, with the token for admin verbs."""
        return self._call("PUT", path, body=body, admin=True, timeout_s=timeout_s)

    def delete(self, path: str) -> Any:
        """Return the JSON of a DELETE, with the token for admin verbs."""
        return self._call("DELETE", path, admin=True)

    def answer(self, body: Mapping[str, Any], timeout_s: float) -> Any:
        """Return a whole chat completion."""
        return self._call("POST", "/v1/chat/completions", body=body, timeout_s=timeout_s)

    def stream(self, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Iterator[Any]:
        """Yield the JSON events of a server-sent stream; POST with a body, GET without one.

        Raises RemoteError for an error object in the stream.
        """
        with (
            self._errors(),
            self._http.stream(
                "GET" if body is None else "POST",
                path,
                json=body,
                headers=self._headers(admin=False),
                timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            ) as response,
        ):
            if response.status_code >= 400:
                response.read()
                _raise_for(response)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                response.read()
                yield _json(response)
                return
            for line in response.iter_lines():
                if not line.startswith(SSE_DATA):
                    continue
                data = line[len(SSE_DATA) :].strip()
                if data == SSE_END:
                    return
                event = json.loads(data)
                if isinstance(event, dict) and isinstance(event.get("error"), dict):
                    raise _remote_error(event["error"], response.status_code)
                yield event

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        admin: bool = False,
        query: Mapping[str, object] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Any:
        with self._errors():
            response = self._http.request(
                method,
                path,
                json=body,
                params=_given(query or {}),
                headers=self._headers(admin=admin),
                timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            )
            if path not in {"/healthz", "/readyz"}:  # these tell "not ready" with a body worth reading
                _raise_for(response)
            return _json(response)

    def _headers(self, *, admin: bool) -> dict[str, str]:
        return {"authorization": f"Bearer {read_token(self._settings.data_path, admin=admin)}"}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise DaemonUnreachable(
                f"the daemon does not answer at {self.url}: it is starting or has just stopped; "
                "try again, or start it with `outrider serve`"
            ) from error
        except httpx2.TimeoutException as error:
            raise DaemonUnreachable(f"the daemon at {self.url} took too long; see its log, or try again") from error
        except httpx2.HTTPError as error:
            raise DaemonUnreachable(
                f"the connection to {self.url} broke ({type(error).__name__}): the daemon stopped in the middle; "
                "`outrider requests list` tells what was stored"
            ) from error


def _given(query: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None}


def _trust(settings: Settings) -> bool | ssl.SSLContext:
    if not settings.server.tls_cert:
        return True
    try:
        return ssl.create_default_context(cafile=settings.server.tls_cert)
    except OSError as error:  # an ssl.SSLError too
        raise ConfigError(f"server.tls_cert {settings.server.tls_cert} cannot be used: {error}") from error


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise DaemonUnreachable(f"{response.url} did not answer with JSON: is another program on this port?") from error


def _raise_for(response: httpx2.Response) -> None:
    if response.status_code < 400:
        return
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        found = {}
    raise _remote_error(found if isinstance(found, dict) else {}, response.status_code)


def _remote_error(found: Mapping[str, Any], status: int) -> RemoteError:
    return RemoteError(
        str(found.get("message") or f"the daemon answered with HTTP {status}"),
        code=str(found.get("code") or OutriderError.code),
        status=status,
        param=found.get("param"),
    )
