"""R7: the line to the target is cut in every way, again and again, in a closed network of two namespaces.

Wanted: nothing lost, nothing marked as answered that was not, no attempt spent while the target is out of reach, and
the queue begins to drain within 5 s of the line's return.
"""

import asyncio
import contextlib
import random
import shutil
import ssl
import statistics
import time
from collections import Counter

import pytest
import trustme
from fakes import cloud as fake
from fakes import namespaces
from fakes.daemon_process import DaemonProcess
from fakes.far_cloud import tls_cloud
from fakes.name_server import Manner, name_server
from fakes.namespaces import TARGET_ADDRESS
from test_r01_kills import drained

CONFIG = """
[[targets]]
name = "main"
base_url = "https://{host}:8443/v1"
model = "big"
egress = "allow"
ca_file = "{ca}"
concurrency = 2

[connectivity]
connect_timeout_s = 1
probe_cap_s = 2
"""
NAME = "target.example"
why_not = namespaces.available()
pytestmark = pytest.mark.skipif(bool(why_not), reason=f"NO CLOSED NETWORK TESTED: {why_not}")


class Line:
    """The ways in which the line can be cut; each is a context in which it is."""

    def __init__(self, device, far, cloud, ca, names):
        self.device, self.far, self.cloud, self.names = device, far, cloud, names
        self.loop = cloud._server.get_loop()
        self.right = cloud.tls
        self.wrong = {
            "certificate of another authority": tls_context(trustme.CA(), NAME),
            "certificate of another host": tls_context(ca, "elsewhere.example"),
        }

    def on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    @contextlib.contextmanager
    def link(self, side):
        side.set_link("down")
        yield
        side.set_link("up")

    @contextlib.contextmanager
    def silence(self):
        """Packets are dropped: the other side answers no question where it is any more."""
        namespaces.run("ip", "-n", self.far.name, "link", "set", "eth0", "arp", "off")
        namespaces.run("ip", "-n", self.device.name, "neigh", "flush", "dev", "eth0")
        namespaces.run("ip", "-n", self.far.name, "addr", "del", f"{TARGET_ADDRESS}/30", "dev", "eth0")
        yield
        namespaces.run("ip", "-n", self.far.name, "addr", "add", f"{TARGET_ADDRESS}/30", "dev", "eth0")
        namespaces.run("ip", "-n", self.far.name, "link", "set", "eth0", "arp", "on")

    @contextlib.contextmanager
    def refused(self):
        """The port is closed: a reset for each connection."""
        self.on_loop(self.cloud.down())
        yield
        self.on_loop(self.cloud.up())

    @contextlib.contextmanager
    def answers(self, behaviour, probe):
        self.cloud.default, self.cloud.default_probe = behaviour, probe
        yield
        self.cloud.default, self.cloud.default_probe = fake.ok(), fake.models()

    @contextlib.contextmanager
    def certificate(self, name):
        self.on_loop(self.cloud.down())
        self.cloud.tls = self.wrong[name]
        self.on_loop(self.cloud.up())
        yield
        self.on_loop(self.cloud.down())
        self.cloud.tls = self.right
        self.on_loop(self.cloud.up())

    @contextlib.contextmanager
    def resolver(self, manner):
        self.names.manner = manner
        yield
        self.names.manner = Manner.ANSWERS

    @contextlib.contextmanager
    def slow(self, rate):
        """Both sides send no faster than this."""
        for side in (self.device, self.far):
            namespaces.run(
                "tc", "-n", side.name, "qdisc", "add", "dev", "eth0", "root",
                "tbf", "rate", rate, "burst", "1600", "latency", "3s",
            )  # fmt: skip
        yield
        for side in (self.device, self.far):
            namespaces.run("tc", "-n", side.name, "qdisc", "del", "dev", "eth0", "root")

    def kinds(self):
        portal = fake.redirect("http://portal.example/login")
        return {
            "own link": lambda: self.link(self.device),
            "far link": lambda: self.link(self.far),
            "packets dropped": self.silence,
            "refused": self.refused,
            "portal with 302": lambda: self.answers(portal, portal),
            "portal with a page": lambda: self.answers(fake.html(), fake.html()),
            "cut before the reply": lambda: self.answers(fake.cut_before_reply(), fake.cut_before_reply()),
            **{name: (lambda name=name: self.certificate(name)) for name in self.wrong},
            "name unknown": lambda: self.resolver(Manner.DENIES),
            "resolver fails": lambda: self.resolver(Manner.FAILS),
            "resolver hangs": lambda: self.resolver(Manner.SILENT),
            **(
                {rate: (lambda rate=rate: self.slow(rate.replace(" ", "").replace("/s", ""))) for rate in SLOW}
                if shutil.which("tc")
                else {}
            ),
        }


def tls_context(ca, host):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(context)
    return context


SLOW = {"64 kbit/s", "8 kbit/s"}  # an answer may arrive all the same
SPENDS_ATTEMPTS = {"cut before the reply"}  # bytes left: the target may have them


# Connections of the fake target to a device that is cut off are found unclosed now and then; the device is another process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.sizes(
    short=None,
    full={"cuts": 100, "patience_s": 1500},
    long={"cuts": 500, "patience_s": 6000},
)
def test_cut_in_every_way(tmp_path, size, shown):
    """the line is cut or crawls and comes back, in fourteen ways, in closed network namespaces"""
    chance = random.Random(77)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        namespaces.closed_network() as (device, far),
        tls_cloud(far, TARGET_ADDRESS, ca, name=NAME) as cloud,
        name_server(far, TARGET_ADDRESS, NAME, TARGET_ADDRESS) as names,
    ):
        device.resolve_at(TARGET_ADDRESS)
        toml = CONFIG.format(host=NAME, ca=tmp_path / "ca.pem")
        daemon = DaemonProcess(tmp_path / "device", toml, command_prefix=device.prefix)
        device.call(daemon.start)
        line = Line(device, far, cloud, ca, names)
        kinds = line.kinds()
        texts, done, spent, local, slow, times = {}, Counter(), [], [], [], []
        order = [*kinds] * (size["cuts"] // len(kinds) + 1)
        chance.shuffle(order)
        for cut, kind in enumerate(order[: size["cuts"]]):
            ids = []
            with kinds[kind]():
                for n in range(2):
                    text = f"unsure {cut}-{n}"
                    said = device.call(daemon.chat, text, key=f"k{cut}-{n}").json()["outrider"]
                    ids.append(said["request_id"])
                    texts[said["request_id"]] = text
                if device.call(daemon.chat, "hello").json()["outrider"]["decision"] != "answered":
                    local.append(cut)
                time.sleep(chance.uniform(0.3, 1.5))
                for rid in ids:
                    row = device.call(daemon.request, rid)["escalation"]
                    if row["attempts"] and kind not in SPENDS_ATTEMPTS:
                        spent.append((kind, row["attempts"]))
                    if row["state"] not in {"pending", "leased"} and kind not in SLOW:
                        spent.append((kind, row["state"]))
            began = time.monotonic()
            if kind in SPENDS_ATTEMPTS:
                device.call(drain, daemon)
            device.call(drained, daemon, ids, 60)
            if kind not in SPENDS_ATTEMPTS:
                times.append(time.monotonic() - began)
                if times[-1] > 5:
                    slow.append((kind, round(times[-1], 1)))
            done[kind] += 1
        records = device.call(drained, daemon, texts)
        shown.did("cuts", ", ".join(f"{kind}: {count}" for kind, count in sorted(done.items())))
        shown.none("lost", [rid for rid, record in records.items() if record["state"] != "resolved"])
        wrong = [rid for rid, text in texts.items() if records[rid]["cloud_answer"]["text"] != f"cloud: {text}"]
        shown.none("marked as answered by what was not the target", wrong)
        shown.none("attempts spent, or rows ended, while it was out of reach", spent)
        shown.none("local answers that did not come meanwhile", local)
        shown.did("drained after the return, median", f"{statistics.median(times):.1f} s")
        shown.did(
            "of these after more than 5 s", ", ".join(f"{kind} ({seconds} s)" for kind, seconds in slow) or "none"
        )
        shown.most("slowest", max(times), 5, "s")
        keys = {(chat.last_user_text, chat.headers["idempotency-key"]) for chat in cloud.chats}
        shown.none("rows sent under two keys", len(keys) - len(texts))
        assert device.call(daemon.stop) == 0


def drain(daemon):
    with daemon.client(admin=True) as client:
        client.post("/v1/queue/drain").raise_for_status()
