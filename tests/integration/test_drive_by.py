"""A real browser on a page of somebody else: nothing that the page tries does anything, or is answered."""

import contextlib
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes.api_server import USER, served
from fakes.daemon_process import DaemonProcess

from agent.api.auth import load_tokens
from agent.storage.keys import make_private_folder

PAGE = Path(__file__).with_name("drive_by.html").read_text()
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STRANGER = "evil.test"
VECTORS = {
    "cors get", "cors post", "simple get", "simple post", "no-cors post", "no-cors get", "put", "delete", "beacon",
    "form text", "form url", "form parts", "image", "script", "websocket", "events",
}  # fmt: skip
pytestmark = pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: apt-get install chromium shows the drive-by page")


class Web(ThreadingHTTPServer):
    """Serves the page, takes its reports, and lets anybody do anything."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, told=None, port=0):
        self.told, self.seen, self.reported = told, [], None
        self.loaded, self.done = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def _any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server
        server.seen.append((self.command, self.path, self.headers))
        if self.path == "/done":
            server.reported = json.loads(body)
            server.done.set()
        if self.path == "/loaded":
            server.loaded.set()
        page = PAGE.replace("TOLD", json.dumps(server.told)).encode() if self.path == "/page" else b"{}"
        kind = "text/html" if self.path == "/page" else "application/json"
        if self.path.endswith("/events"):
            kind = "text/event-stream"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(page)))
        self.send_header("connection", "close")
        self.send_header("access-control-allow-origin", "*")
        self.send_header("access-control-allow-headers", "authorization, content-type")
        self.send_header("access-control-allow-methods", "GET, POST, PUT, DELETE")
        self.end_headers()
        self.wfile.write(page)

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = _any

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def browser(folder, url):
    """Open a page until the block ends."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0",
        f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1, MAP * ~NOTFOUND , EXCLUDE 127.0.0.1, EXCLUDE 0.0.0.0, EXCLUDE localhost",
        url,
    ]  # fmt: skip
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_a_page_of_another_site_does_nothing_and_learns_nothing(tmp_path):
    with served(tmp_path / "data") as api, contextlib.closing(Web()) as web:
        naive = f"http://127.0.0.1:{web.port}"
        web.told = {"api": api.url, "naive": naive, "control": naive, "token": USER, "rebinding": False}
        with browser(tmp_path, f"http://{STRANGER}:{web.port}/page"):
            assert web.done.wait(120), (tmp_path / "browser.log").read_text()[-2000:]
        found = web.reported
        assert all(set(found[name]) == VECTORS for name in ("naive", "api", "any address", "localhost"))
        # The control: a server that lets anybody in was reached by every vector, and read by most.
        assert found["naive"]["cors post"] == "200 {}"
        assert found["naive"]["events"] == "open"
        reached = {(method, path) for method, path, _ in web.seen}
        assert {("PUT", "/v1/tasks/x/examples"), ("DELETE", "/v1/files/x"), ("POST", "/v1/queue/purge")} <= reached
        assert any(headers.get("upgrade") == "websocket" for _, _, headers in web.seen)
        kinds = {
            headers.get("content-type", "").partition(";")[0] for _, path, headers in web.seen if path[:4] == "/v1/"
        }
        assert {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"} <= kinds
        for name in ("api", "any address", "localhost"):
            for vector, seen in found[name].items():
                assert seen in SEEN_BY_A_STRANGER, (name, vector, seen)
        assert_untouched(api.engine.asked, api.get("/v1/requests").json(), api.get("/v1/files").json())


SEEN_BY_A_STRANGER = {"refused by the browser: TypeError", "opaque", "error", "unreadable", "sent", "no answer"}


def assert_untouched(asked, requests, files):
    assert list(asked) == []
    assert requests["data"] == []
    assert files["data"] == []


def test_a_name_that_was_rebound_to_this_machine_is_refused(tmp_path):
    """The page's own server goes, the daemon comes in its place: for the browser it is one origin."""
    with contextlib.closing(Web()) as control:
        page = Web()
        at = f"http://127.0.0.1:{control.port}"
        daemon = DaemonProcess(tmp_path / "device", f"[server]\nport = {page.port}\n")
        make_private_folder(daemon.data)
        token = load_tokens(daemon.data).user_token
        page.told = {"api": "", "naive": "", "control": at, "token": token, "rebinding": True}
        with browser(tmp_path, f"http://{STRANGER}:{page.port}/page"):
            assert control.loaded.wait(60), (tmp_path / "browser.log").read_text()[-2000:]
            page.close()
            daemon.start()
            assert control.done.wait(120), (tmp_path / "browser.log").read_text()[-2000:]
        found = control.reported["rebound"]
        assert set(found) == VECTORS
        for vector, seen in found.items():
            assert seen in SEEN_BY_A_STRANGER or seen.startswith(("403 ", 'read: {"error"')), (vector, seen)
        assert found["cors post"].startswith("403 ")  # the browser let it through, and the daemon did not
        assert '"code":"forbidden"' in found["cors get"]
        with daemon.client() as client:
            requests, files = client.get("/v1/requests").json(), client.get("/v1/files").json()
        assert_untouched((), requests, files)
        assert daemon.stop() == 0
