"""Who may call: tokens, Host, Origin. Loopback alone is no protection from web pages and other users."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Collection, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
from starlette.datastructures import Headers

from agent.configuration import LOOPBACK_HOSTS
from agent.egress_settings import KeySettings
from agent.errors import Forbidden, KeyProblem, Unauthorized
from agent.settings import ServerSettings
from agent.storage.keys import make_private_folder
from agent.types import EgressPolicy

TOKEN_FILE = "token"  # noqa: S105 - a file name
ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 - a file name
KEYS_FOLDER = "keys"
SHORTEST_TOKEN = 32  # characters
_REMEDY = "remove it, the next start makes a new one"


class CallerKey(msgspec.Struct, frozen=True):
    """A caller with a token of its own: may do what the user token may, and send away no more than its policy says."""

    name: str
    token: str
    egress: EgressPolicy

    def __repr__(self) -> str:
        return f"CallerKey({self.name!r}, ...)"


def of_caller(key: CallerKey | None, idempotency_key: str | None) -> str | None:
    """Return an Idempotency-Key as it is stored: that of one caller is never another's."""
    if key is None or idempotency_key is None:
        return idempotency_key
    return f"{key.name}\x1f{idempotency_key}"  # a character that no header may hold


class Tokens(msgspec.Struct, frozen=True):
    """The bearer tokens. The admin token may do what the user token may."""

    user_token: str
    admin_token: str
    keys: tuple[CallerKey, ...] = ()

    def __repr__(self) -> str:
        return "Tokens(...)"


class Role(StrEnum):
    """What a token stands for."""

    USER = "user"
    ADMIN = "admin"


def load_tokens(data_dir: Path, keys: Sequence[KeySettings] = ()) -> Tokens:
    """Return the tokens of a data directory and of ``keys``, drawn at the first call (256 bits, mode 0600).

    Raises KeyProblem for a file that others can read, a link, or no token.
    """
    if any(not key.token_file for key in keys):
        make_private_folder(data_dir / KEYS_FOLDER)
    found = [CallerKey(key.name, _load(_token_path(data_dir, key)), key.egress) for key in keys]
    tokens = Tokens(_load(data_dir / TOKEN_FILE), _load(data_dir / ADMIN_TOKEN_FILE), tuple(found))
    texts = [tokens.user_token, tokens.admin_token, *(key.token for key in found)]
    if len(set(texts)) < len(texts):
        raise KeyProblem("two callers have the same token; their files must differ, or their policies would mix")
    return tokens


def _token_path(data_dir: Path, key: KeySettings) -> Path:
    return Path(key.token_file).expanduser() if key.token_file else data_dir / KEYS_FOLDER / key.name


def _load(path: Path) -> str:
    try:
        if not path.exists() and not path.is_symlink():
            _create(path)
        # Without waiting: a named pipe in the file's place must not hold up the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            raw = os.read(descriptor, 4096).strip() if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyProblem(f"{path} cannot be used ({error.strerror}); {_REMEDY}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise KeyProblem(f"{path} is not a file of this user; {_REMEDY}")
    if found.st_mode & 0o077:
        raise KeyProblem(f"{path} can be read by others; {_REMEDY}")
    if len(raw) < SHORTEST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise KeyProblem(f"{path} holds no token of {SHORTEST_TOKEN} characters; {_REMEDY}")
    return raw.decode("ascii")


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def check_caller(headers: Headers, server: ServerSettings) -> None:
    """Refuse callers that a browser was tricked into being. Raises Forbidden.

    Host must be a loopback name or allowed (a rebound DNS name is neither); Origin must be
    absent or allowed; a fetch from another site needs an allowed Origin.
    """
    host = _host_name(headers.getlist("host"))
    if host is None or host not in _allowed_hosts(server):
        raise Forbidden("this Host is not allowed: use 127.0.0.1 or localhost, or set server.allowed_hosts")
    origins = headers.getlist("origin")
    if origins and (len(origins) > 1 or not _origin_allowed(origins[0], server.allowed_origins)):
        raise Forbidden("this Origin is not allowed: set server.allowed_origins to let a page in")
    if not origins and any(site not in {"same-origin", "none"} for site in headers.getlist("sec-fetch-site")):
        raise Forbidden("requests from pages of another site are not allowed")


def _allowed_hosts(server: ServerSettings) -> set[str]:
    return {*LOOPBACK_HOSTS, server.host.lower(), *(name.lower() for name in server.allowed_hosts)}


def _host_name(values: Collection[str]) -> str | None:
    """Return the name in a Host header without its port, None when it is not one name."""
    if len(values) != 1:
        return None
    (value,) = values
    if value.startswith("["):
        name, bracket, rest = value[1:].partition("]")
        if not bracket:
            return None
    else:
        name, colon, port = value.partition(":")
        rest = colon + port
    if rest and not (rest[0] == ":" and rest[1:].isascii() and rest[1:].isdigit()):
        return None
    return name.lower()


def _origin_allowed(origin: str, allowed: Collection[str]) -> bool:
    return origin != "null" and origin in allowed


class Caller(msgspec.Struct, frozen=True):
    """Who calls: its role, and the key that it came with, if it is one of its own."""

    role: Role
    key: CallerKey | None = None


def caller_of(headers: Headers, tokens: Tokens) -> Caller:
    """Return whose bearer token it is. Raises Unauthorized."""
    values = headers.getlist("authorization")
    scheme, _, given = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise Unauthorized("a bearer token is needed; `outrider env` prints it")
    raw = given.strip().encode("latin-1", "replace")
    # All comparisons always run, each in a time that does not depend on the token.
    is_user = hmac.compare_digest(raw, tokens.user_token.encode())
    is_admin = hmac.compare_digest(raw, tokens.admin_token.encode())
    owned = [key for key in tokens.keys if hmac.compare_digest(raw, key.token.encode())]
    if is_admin:
        return Caller(Role.ADMIN)
    if is_user:
        return Caller(Role.USER)
    if owned:
        return Caller(Role.USER, owned[0])
    raise Unauthorized("this bearer token is not known; `outrider env` prints the right one")
