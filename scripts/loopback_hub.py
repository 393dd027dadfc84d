"""A Hugging Face hub on this machine alone: serves folders as repositories, to try pulls without a network.

    python scripts/loopback_hub.py owner/name=FOLDER ...

Prints its URL; set HF_ENDPOINT to it. It knows the routes that ``outrider pull`` asks for (what a
repository holds, and its files, whole or from a byte on), tells the SHA-256 of weights and the
git SHA-1 of the rest as the real one does, and listens on loopback only. Ctrl-C ends it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".onnx")
_CHUNK = 1 << 20


class Repository:
    """The files of one folder, as they were when it was looked at."""

    def __init__(self, name: str, folder: Path, licence: str) -> None:
        self.name = name
        self.files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        self.sha256 = {name: _sha256(path) for name, path in self.files.items()}
        self.commit = hashlib.sha1("".join(self.sha256.values()).encode(), usedforsecurity=False).hexdigest()
        self.licence = licence

    def described(self) -> dict[str, object]:
        """Return what the hub tells of a repository."""
        siblings = []
        for name, path in self.files.items():
            size = path.stat().st_size
            sibling: dict[str, object] = {"rfilename": name, "size": size}
            if name.endswith(LARGE):
                sibling["lfs"] = {"sha256": self.sha256[name], "size": size, "pointerSize": 134}
                sibling["blobId"] = "0" * 40  # of the pointer, which nobody asks for
            else:
                sibling["blobId"] = _git_sha1(path.read_bytes())
            siblings.append(sibling)
        return {
            "id": self.name,
            "sha": self.commit,
            "siblings": siblings,
            "cardData": {"license": self.licence},
            "gated": False,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Repository] = {}

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) in {4, 6}:
            found = self.repositories.get("/".join(parts[2:4]))
            revision = parts[5] if len(parts) == 6 else "main"
            if found is None:
                self._reply(404, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})
            elif revision not in {"main", found.commit}:
                self._reply(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"})
            else:
                self._reply(200, json.dumps(found.described()).encode(), {"Content-Type": "application/json"})
            return
        found = self.repositories.get("/".join(parts[:2])) if len(parts) == 5 and parts[2] == "resolve" else None
        if found is None or parts[4] not in found.files:
            self._reply(404, b'{"error": "no such file"}', {"X-Error-Code": "EntryNotFound"})
            return
        self._send(found, parts[4])

    def _send(self, repository: Repository, name: str) -> None:
        path = repository.files[name]
        size = path.stat().st_size
        asked = self.headers.get("Range", "")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked.startswith("bytes=") else 0
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{repository.sha256[name]}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as file, suppress(OSError):  # the client may leave at any time
            file.seek(first)
            while piece := file.read(_CHUNK):
                self.wfile.write(piece)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving(folders: Mapping[str, Path], licence: str = "apache-2.0") -> Iterator[str]:
    """Serve folders as repositories (owner/name) while the block runs; yields the URL of the hub."""
    repositories = {name: Repository(name, folder, licence) for name, folder in folders.items()}
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> int:
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    if not pairs or any(not (name.count("/") == 1 and Path(folder).is_dir()) for name, _, folder in pairs):
        sys.stderr.write("usage: python scripts/loopback_hub.py owner/name=FOLDER ...\n")
        return 64
    with serving({name: Path(folder) for name, _, folder in pairs}) as url, suppress(KeyboardInterrupt):
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        threading.Event().wait()
    return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
