"""Leaks: requests of every policy wait while policies change, and every byte that reaches the target is searched."""

import asyncio
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from fakes.cloud import cloud_in_thread
from fakes.daemon_process import DaemonProcess

from agent.types import EgressPolicy

ORDER = [EgressPolicy.NEVER, EgressPolicy.APPROVE, EgressPolicy.REDACT, EgressPolicy.ALLOW]  # from strict to loose
CONCURRENCY = 4
TASKS, KEYS = ("notes", "mails"), ("desk", "van")
CONFIG = """
[egress]
policy = "{device}"

[queue]
max_rows = 1000000

[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "{target}"
concurrency = {concurrency}

[connectivity]
probe_cap_s = 1
"""
FOUND = re.compile(rb"qx(\d{6})z|p(\d{6})@mail\.example|(4\d{15})|(10\.\d+\.\d+\.\d+)|(DE\d{20})")


def card(number):
    """Return a card number of its own that passes the Luhn check."""
    digits = f"4{number:014d}"
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(digits))
    return digits + str(-total % 10)


def iban(number):
    """Return an IBAN of its own with right check digits."""
    account = f"{number:018d}"
    return f"DE{98 - int(account + '131400') % 97:02d}{account}"


@dataclass
class Asked:
    """One labelled request: the policy it was accepted under, and whether a stricter one has held it since."""

    number: int
    accepted: EgressPolicy
    task: str | None = None
    key: str | None = None
    held: bool = False

    @property
    def text(self):
        n = self.number
        ip = f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}"
        return f"unsure qx{n:06d}z: write to p{n:06d}@mail.example, charge {card(n)}, pay {iban(n)}, then look at {ip} please"

    def may_leave(self, now, named):
        """Return how it may leave under the present policies: as it is (allow), pseudonymised (redact), or not (None).

        ``now`` is that of device and target, ``named`` those of tasks and keys.
        """
        policy = strictest(self.accepted, now, *(named[name] for name in (self.task, self.key) if name))
        return policy if policy in {EgressPolicy.ALLOW, EgressPolicy.REDACT} and not self.held else None


def strictest(*policies):
    return min(policies, key=ORDER.index)


class Run:
    """The daemon, its target, and all that was asked."""

    def __init__(self, tmp_path, cloud):
        self.cloud = cloud
        self.loop = cloud._server.get_loop()
        self.named = dict.fromkeys((*TASKS, *KEYS), EgressPolicy.ALLOW)
        self.tasks = tmp_path / "device" / "tasks"
        self.tasks.mkdir(parents=True)
        self.daemon = DaemonProcess(tmp_path / "device", self.config(EgressPolicy.ALLOW, EgressPolicy.ALLOW))
        self.daemon.start()
        self.asked = {}
        self.of = {}  # a secret -> the number of its request
        self.pool = ThreadPoolExecutor(4)
        self.write_tasks()
        self.call()

    def config(self, device, target):
        keys = "".join(f'\n[[keys]]\nname = "{key}"\negress = "{self.named[key]}"\n' for key in KEYS)
        return CONFIG.format(device=device, target=target, url=self.cloud.base_url, concurrency=CONCURRENCY) + keys

    def write_tasks(self):
        for task in TASKS:
            (self.tasks / f"{task}.toml").write_text(f'name = "{task}"\nkind = "text"\negress = "{self.named[task]}"\n')

    def call(self):
        self.http = self.daemon.client()
        self.tokens = {key: self.daemon.token(f"keys/{key}") for key in KEYS}

    def restart(self):
        """What keys may is read at the start."""
        self.http.close()
        assert self.daemon.stop() == 0
        self.daemon.start()
        self.call()

    def reach(self, up):
        asyncio.run_coroutine_threadsafe(self.cloud.up() if up else self.cloud.down(), self.loop).result()

    def reload(self, device, target):
        self.daemon.configure(self.config(device, target))
        with self.daemon.client(admin=True) as client:
            client.post("/v1/admin/reload").raise_for_status()

    def ask(self, chance, now, count):
        batch = []
        for _ in range(count):
            own = chance.choice([None, *ORDER])
            task, key = chance.choice((None, *TASKS)), chance.choice((None, *KEYS))
            told = [self.named[name] for name in (task, key) if name]
            one = Asked(len(self.asked), strictest(now, own or EgressPolicy.ALLOW, *told), task, key)
            self.asked[one.number] = one
            for secret in (f"p{one.number:06d}", card(one.number), iban(one.number)):
                self.of[secret.encode()] = one.number
            batch.append((one, own))
        list(self.pool.map(self.send, batch))

    def send(self, what):
        one, own = what
        body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": one.text}]}
        if own is not None:
            body["outrider"] = {"egress": own.value}
        if one.task:
            body["metadata"] = {"task": one.task}
        headers = {"authorization": f"Bearer {self.tokens[one.key]}"} if one.key else {}
        answer = self.http.post("/v1/chat/completions", json=body, headers=headers)
        said = answer.raise_for_status().json()["outrider"]
        expected = "uncertain" if one.accepted is EgressPolicy.NEVER else "queued"
        assert said["decision"] == expected, (one, said)

    def counts(self):
        with self.daemon.client(admin=True) as client:
            return client.get("/v1/queue").raise_for_status().json()["counts"]

    def drained(self, now):
        """Wait until what may leave has left."""
        with self.daemon.client(admin=True) as client:
            client.post("/v1/queue/drain").raise_for_status()
        if strictest(now, EgressPolicy.APPROVE) is now:
            time.sleep(0.5)  # for what must not happen
            return
        until = time.monotonic() + 120
        while time.monotonic() < until:
            counts = self.counts()
            if counts["pending"]["rows"] + counts["leased"]["rows"] == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"rows that may leave did not: {counts}")


def searched(run, received, now):
    """Search one request that reached the target; return (leaks, the number of the request)."""
    raw = b"\n".join(
        [received.path.encode(), *(f"{k}: {v}".encode() for k, v in received.headers.items()), received.body]
    )
    leaks, numbers = [], set()
    for label, mail, number, ip, account in FOUND.findall(raw):
        if label:
            numbers.add(int(label))
            if run.asked[int(label)].may_leave(now, run.named) is None:
                leaks.append(("text", int(label)))
            continue
        owner = int(mail) if mail else run.of.get(number or account)
        if ip:
            parts = [int(part) for part in ip.split(b".")]
            owner = parts[1] << 16 | parts[2] << 8 | parts[3]
        if owner is None or run.asked[owner].may_leave(now, run.named) is not EgressPolicy.ALLOW:
            leaks.append((mail or number or ip or account, owner))
    return leaks, numbers


@pytest.mark.sizes(
    short={"rounds": 3, "requests": 40},
    full={"rounds": 20, "requests": 500, "patience_s": 1500},
    long={"rounds": 40, "requests": 500, "patience_s": 3000},
)
def test_flags_flipped_while_requests_wait(tmp_path, size, shown):
    """labelled requests, policies of device, target, request, task and caller's key changed while they wait"""
    chance = random.Random(42)
    leaks, sent = [], Counter()
    with cloud_in_thread() as cloud:
        run = Run(tmp_path, cloud)
        for turn in range(size["rounds"]):
            run.reach(up=False)
            before = (EgressPolicy.ALLOW, EgressPolicy.ALLOW) if turn == 0 else policies(chance)
            apply(run, before)
            run.ask(chance, strictest(*before), size["requests"])
            for _ in range(chance.choice((0, 0, 0, 1, 2))):
                apply(run, policies(chance))  # to and fro, while nothing can leave
            after = (EgressPolicy.ALLOW, EgressPolicy.ALLOW) if turn % 3 == 0 else policies(chance)
            anew = turn % 3 == 1
            rename(run, chance, TASKS + KEYS if anew else TASKS)
            apply(run, after)
            if anew:
                run.restart()
            seen = len(cloud.requests)
            run.reach(up=True)
            run.drained(strictest(*after))
            for received in cloud.requests[seen:]:
                found, numbers = searched(run, received, strictest(*after))
                leaks += found
                for number in numbers:
                    sent[number] += 1
        policy_of = {number: run.asked[number].accepted for number in sent}
        shown.did("labelled requests, rounds of changes", f"{len(run.asked):,}, {size['rounds']}")
        shown.did("bodies and heads searched", f"{len(cloud.requests):,}")
        shown.did("sent as they are", sum(policy is EgressPolicy.ALLOW for policy in policy_of.values()))
        shown.did("sent pseudonymised", sum(policy is EgressPolicy.REDACT for policy in policy_of.values()))
        assert len(sent) > size["requests"] / 10, "too little left to show anything"
        shown.none("sent that must not be, or with what must not be in it", leaks)
        shown.none("sent twice", [number for number, count in sent.items() if count > 1])
        run.http.close()
        run.pool.shutdown()
        assert run.daemon.stop() == 0


def policies(chance):
    """Return policies of the device and of the target, more often loose ones: strict ones show little."""
    return tuple(chance.choices(ORDER, (1, 1, 2, 4), k=2))


def rename(run, chance, names):
    """Change what these tasks and keys may. Of a key it holds from the next start."""
    run.named |= {name: chance.choices(ORDER, (1, 1, 2, 4))[0] for name in names}
    run.write_tasks()


def apply(run, both):
    device, target = both
    run.reload(device, target)
    if target in {EgressPolicy.NEVER, EgressPolicy.APPROVE}:
        for one in run.asked.values():
            one.held = True  # it waits for a person from now on, whatever comes; the device's own switch goes back
