"""A Hugging Face hub on loopback: the routes that the real client asks for, and the ways in which they fail."""

import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the server offers and does; tests change it while it runs."""

    def __init__(self):
        self.files = {}  # path -> bytes
        self.sent = {}  # path -> bytes that are sent instead
        self.commit = COMMIT
        self.gated = False
        self.token = None  # the only one that is let in to a gated repository
        self.licence = "apache-2.0"
        self.parameters = None
        self.cut_after = []  # bytes after which the next downloads are cut, one each
        self.statuses = []  # of the next downloads, before they work
        self.ranges = True
        self.pause = False  # downloads stop half way, until their client is gone
        self.half = threading.Event()  # a download has come to that point
        self.gone = threading.Event()  # and its client has ended
        self.requests = []  # (method, path, headers)
        self.url = ""

    def downloads(self):
        return [(path, headers) for method, path, headers in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def hub():
    """Run a hub; its ``url`` is the endpoint."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            state.requests.append((self.command, self.path, dict(self.headers)))
            path = unquote(urlsplit(self.path).path).strip("/")
            if state.gated and self.headers.get("Authorization") != f"Bearer {state.token}":
                refused = 403 if self.headers.get("Authorization") else 401
                self.reply(refused, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
            elif path.startswith("api/models/owner/tiny"):
                asked = path.removeprefix("api/models/owner/tiny").removeprefix("/revision/")
                if asked not in {"", "main", state.commit}:
                    self.reply(404, b'{"error": "revision"}', {"X-Error-Code": "RevisionNotFound"})
                else:
                    self.reply(200, json.dumps(self.info()).encode(), {"Content-Type": "application/json"})
            elif path.startswith("owner/tiny/resolve/"):
                self.download(path.split("/", 4)[4])
            elif path.startswith("plain/"):
                self.download(path.removeprefix("plain/"))
            else:
                self.reply(404, b'{"error": "none"}', {"X-Error-Code": "RepoNotFound"})

        def info(self):
            assert self.command == "GET"
            siblings = []
            for name, data in state.files.items():
                one = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
                if name.endswith((".gguf", ".safetensors")):
                    sha = hashlib.sha256(data).hexdigest()
                    one["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
                siblings.append(one if "blobs" in parse_qs(urlsplit(self.path).query) else {"rfilename": name})
            info = {"id": "owner/tiny", "sha": state.commit, "siblings": siblings, "gated": False, "private": False}
            info |= {"cardData": {"license": state.licence}, "tags": [], "downloads": 0, "likes": 0}
            return info | ({"gguf": {"total": state.parameters}} if state.parameters else {})

        def download(self, name):
            if self.command == "GET" and state.statuses:
                self.reply(state.statuses.pop(0), b"{}", {"Retry-After": "0"})
                return
            if name not in state.files:
                self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            data = state.sent.get(name, state.files[name])
            first = 0
            asked = self.headers.get("Range", "")
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": state.commit}
            headers["Accept-Ranges"] = "bytes"
            if asked.startswith("bytes=") and state.ranges:
                first = int(asked.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self.send_response(206 if first else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            if self.command == "HEAD":
                return
            body = data[first:]
            if state.cut_after:
                self.wfile.write(body[: state.cut_after.pop(0)])
                self.close_connection = True
                return
            if state.pause:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                state.half.set()
                self.close_connection = True
                self.connection.settimeout(30)
                with suppress(ConnectionError):
                    self.connection.recv(1)
                state.gone.set()
                return
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def reply(self, status, body, headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients are killed on purpose
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
