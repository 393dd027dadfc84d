"""``local_only``, from the start to the answer: nothing is connected beyond this machine, and no name is asked for.

Shown twice: by every network call of the daemon and its children (strace), and by an answer in a network
namespace that has nothing but loopback. The first has its control: the same trace of a request that may leave.
"""

import re
import shutil
import subprocess
import sys
import time

import pytest
from fakes import namespaces
from fakes.daemon_process import DaemonProcess

NAME = "smollm2-135m-instruct"
ELSEWHERE = "198.51.100.7"  # RFC 5737: nobody's
TRACED = "trace=socket,connect,sendto,sendmsg,sendmmsg,bind"
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")
ENGINE = "[engine]\nthreads = 1\n"
why_not = namespaces.available()
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="NO STRACE: apt-get install strace shows this")


class Trace:
    """The network calls of a daemon and of all that it starts."""

    def __init__(self, path):
        self.calls = [line for line in path.read_text(errors="replace").splitlines() if "(" in line]
        self.addresses = {
            found for line in self.calls if not re.search(r"\bbind\(", line)
            for found in re.findall(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', line)
            for found in found if found
        }  # fmt: skip
        self.datagrams = [line for line in self.calls if re.search(r"socket\(AF_INET6?, SOCK_DGRAM", line)]
        self.families = {found[1] for line in self.calls if (found := re.search(r"socket\((AF_\w+)", line))}

    @property
    def beyond(self):
        return {address for address in self.addresses if not LOOPBACK.match(address)}


TARGET = '[[targets]]\nname = "t{number}"\nbase_url = "{url}"\nmodel = "big"\negress = "allow"\n'


def traced(folder, toml, urls, *, real=False):
    """Return a daemon whose network calls are written down, with targets that are not on this machine."""
    targets = "".join(TARGET.format(number=number, url=url) for number, url in enumerate(urls))
    prefix = ("strace", "-f", "-D", "-qq", "-e", TRACED, "-o", str(folder / "trace"))
    return DaemonProcess(folder, toml + targets, command_prefix=prefix, real=real)


def ask(daemon, text, **outrider):
    body = {"model": NAME, "messages": [{"role": "user", "content": text}], "outrider": outrider, "max_tokens": 4}
    with daemon.client() as client:
        return client.post("/v1/chat/completions", json=body)


def ended(daemon):
    """Stop a daemon and return what its whole life called."""
    assert daemon.stop() == 0, daemon.log()
    return Trace(daemon.folder / "trace")


@needs_strace
def test_nothing_is_connected_beyond_this_machine(tmp_path):
    daemon = traced(tmp_path / "device", "", [f"https://{ELSEWHERE}:9/v1", "https://target.invalid/v1"]).start()
    for text in ("hello", "unsure"):
        answer = ask(daemon, text, route_mode="local_only")
        assert answer.status_code == 200, answer.text
        assert answer.json()["outrider"]["source"] == "local"
    found = ended(daemon)
    assert found.calls
    assert found.beyond == set()
    assert found.datagrams == []
    assert found.families <= {"AF_INET", "AF_UNIX", "AF_NETLINK"}


@needs_strace
def test_the_trace_would_show_it(tmp_path):
    """The control: a request that may leave is seen to try, by address and by name."""
    daemon = traced(tmp_path / "device", "", [f"https://{ELSEWHERE}:9/v1"]).start()
    assert ask(daemon, "unsure").json()["outrider"]["decision"] == "queued"
    until = time.monotonic() + 60
    while ELSEWHERE not in Trace(daemon.folder / "trace").beyond:
        assert time.monotonic() < until, (daemon.folder / "trace").read_text()
        time.sleep(0.05)
    daemon.kill()
    # A name is asked for over UDP, or of a service on this machine; the list above would have neither.
    log = tmp_path / "names"
    asks = "import socket; socket.getaddrinfo('target.invalid', 80)"
    command = ["strace", "-f", "-qq", "-e", TRACED, "-o", str(log), sys.executable, "-c", asks]
    subprocess.run(command, capture_output=True, check=False)
    assert Trace(log).datagrams or "AF_UNIX" in Trace(log).families


@needs_strace
@pytest.mark.skipif(bool(why_not), reason=f"NO NAMESPACE: {why_not}")
@pytest.mark.model
def test_real_inference_answers_where_there_is_nothing_but_loopback(tmp_path):
    """And none of its libraries tries to get out, not even in vain."""
    daemon = traced(tmp_path / "device", ENGINE, [f"https://{ELSEWHERE}:9/v1"], real=True)
    out = f"import socket; socket.create_connection(('{ELSEWHERE}', 9), 5)"
    with namespaces.lone() as nowhere:
        refused = subprocess.run(
            [*nowhere.prefix, sys.executable, "-c", out], capture_output=True, text=True, check=False
        )
        assert "unreachable" in refused.stderr
        nowhere.call(daemon.start)
        answer = nowhere.call(ask, daemon, "What is the capital of France?", route_mode="local_only")
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        found = ended(daemon)
    assert found.calls
    assert (found.beyond, found.datagrams) == (set(), [])
