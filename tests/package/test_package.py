"""The package on a machine without Python and without a network, from `dpkg -i` to purge.

    make package-test

The tests share one machine and stand in the order of its life.
"""

import json
import os
import time
from pathlib import Path

import bare_machine
import httpx2
import pytest
import trustme
from fakes import namespaces, tiny_encoder
from fakes.far_cloud import tls_cloud

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
DEB = bare_machine.built_package()
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"
CONFIG = """
data_dir = "/var/lib/outrider"

[confidence]
threshold = 0.999

[[targets]]
name = "main"
base_url = "https://{host}:8443/v1"
model = "big"
egress = "allow"
ca_file = "/etc/outrider/ca.pem"

[connectivity]
connect_timeout_s = 1
probe_cap_s = 2
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(machine, far namespace, certificate authority)."""
    if DEB is None:
        pytest.skip("NOTHING TESTED: there is no package in dist/; make it first: make bundle deb")
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO BARE MACHINE TESTED: {reason}")
    with (
        namespaces.closed_network() as (device, far),
        bare_machine.bare_machine(tmp_path_factory.mktemp("bare"), CACHE, device) as machine,
    ):
        far.set_link("down")
        yield machine, far, trustme.CA()


@pytest.fixture(scope="module")
def machine(world):
    return world[0]


def ask(machine, method, path, *, admin=False, **options):
    """Call the daemon from inside its namespace."""
    token = machine.path(f"{bare_machine.DATA}/{'admin-token' if admin else 'token'}").read_text().strip()
    url = json.loads(machine.path(f"{bare_machine.DATA}/daemon.json").read_text())["url"]

    def call():
        headers = {"authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            return client.request(method, path, **options).raise_for_status().json()

    return machine.namespace.call(call)


def chat(machine, text, **extra):
    body = {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 12, **extra}
    return ask(machine, "POST", "/v1/chat/completions", json=body)


def rows(machine):
    """How many rows the outbox has by now, in whatever state: an attempt changes the state, nothing the number."""
    counts = ask(machine, "GET", "/v1/queue", admin=True)["counts"]
    return sum(state["rows"] for state in counts.values())


def test_the_machine_has_no_python_and_no_network(machine):
    assert machine.run("sh", "-c", "command -v python3 python perl5 pip", check=False).returncode != 0
    assert (
        machine.run("sh", "-c", "grep -v -e lo: -e eth0: /proc/net/dev | grep -c :", check=False).stdout.strip() == "0"
    )


def test_it_installs(machine):
    target = machine.path("/tmp/outrider.deb")
    os.link(DEB, target) if target.parent.stat().st_dev == DEB.stat().st_dev else target.write_bytes(DEB.read_bytes())
    machine.run("dpkg", "-i", "/tmp/outrider.deb")
    assert machine.run("/usr/bin/outrider", "--version").stdout.startswith("outrider, version")
    assert machine.run("stat", "-c", "%U %a", bare_machine.DATA).stdout.split() == ["outrider", "700"]
    listed = machine.run("dpkg", "-L", machine.run("sh", "-c", "dpkg -l | awk '/ outrider/ {print $2}'").stdout.strip())
    for expected in (
        bare_machine.SERVICE,
        "/usr/share/man/man1/outrider.1.gz",
        "/usr/share/bash-completion/completions",
    ):
        assert expected in listed.stdout


def test_every_file_is_in_the_bill_of_materials(machine):
    folder = machine.path("/usr/lib/outrider")
    bill = json.loads((folder / "sbom.cdx.json").read_text())
    components = [bill["metadata"]["component"], *bill["components"]]
    listed = {file["name"] for part in components for file in part.get("components", ())}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert there - listed == {"sbom.cdx.json", "LICENSES.txt"}
    assert listed <= there


def test_the_service_starts_as_its_user_and_tells_that_it_is_ready(world):
    machine, _, ca = world
    machine.path("/etc/outrider/ca.pem").write_bytes(ca.cert_pem.bytes())
    machine.path("/etc/outrider/outrider.toml").write_text(CONFIG.format(host=namespaces.TARGET_ADDRESS))
    told = machine.start_service()
    assert "READY=1" in told
    assert any(line.startswith("STATUS=listening on http://127.0.0.1:") for line in told)
    owner = machine.run("stat", "-c", "%U", f"{bare_machine.DATA}/outrider.db").stdout.strip()
    assert owner == "outrider"


def test_it_answers_from_the_embedded_model(machine):
    answer = chat(machine, "What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    parent = machine.run("sh", "-c", f"grep VmRSS /proc/{machine.service.pid}/status").stdout.split()
    print(f"\nparent: {int(parent[1]) // 1024} MiB resident")


def test_root_asks_by_the_command_and_leaves_nothing_of_its_own(machine):
    asked = machine.run("outrider", "ask", "What is the capital of France?")
    assert "Paris" in asked.stdout
    strange = machine.run("find", bare_machine.DATA, "!", "-user", "outrider").stdout
    assert strange == ""


def test_it_classifies_and_embeds(machine):
    body = {"model": "default", "input": "The match ended three to one.", "labels": ["sport", "politics"]}
    scores = ask(machine, "POST", "/v1/classify", json=body)
    assert {one["label"] for one in scores["labels"]} == {"sport", "politics"}
    vectors = ask(machine, "POST", "/v1/embeddings", json={"model": "minilm-l6-v2-int8", "input": ["one", "two"]})
    assert [len(row["embedding"]) for row in vectors["data"]] == [384, 384]


def test_it_quantizes_gguf_and_an_encoder(machine):
    made = machine.run(
        "outrider", "quantize", "smollm2-135m-instruct", "--target", "phone", "--name", "smaller",
        "--no-measure", "--no-importance", "--force",
    )  # fmt: skip
    assert "smaller" in made.stdout
    tiny_encoder.write(machine.path("/tmp/encoder"))
    machine.run("chmod", "-R", "a+rX", "/tmp/encoder")
    machine.run("outrider", "quantize", "/tmp/encoder", "--name", "smaller-encoder", "--no-measure", "--force")
    listed = machine.run("outrider", "models", "list").stdout
    assert "smaller-encoder" in listed


def test_what_is_not_sure_waits_through_a_kill_and_leaves_when_the_line_comes_back(world):
    machine, far, ca = world
    before = rows(machine)
    held = chat(machine, "Which river flows through Vienna?", metadata={"n": "1"})
    assert held["outrider"]["decision"] == "queued"
    request_id = held["outrider"]["request_id"]
    count = rows(machine)
    assert count == before + 1
    machine.kill_service()
    machine.start_service()
    assert rows(machine) == count
    with tls_cloud(far, namespaces.TARGET_ADDRESS, ca) as cloud:
        namespaces.run("ip", "-n", far.name, "link", "set", far.link, "up")
        began = time.monotonic()
        while ask(machine, "GET", f"/v1/requests/{request_id}")["state"] != "resolved":
            assert time.monotonic() - began < 60, machine.log()
            time.sleep(0.1)
        print(f"\ndrained {time.monotonic() - began:.1f} s after the line came back")
        keys = [one.headers["idempotency-key"] for one in cloud.chats]
    assert len(keys) == len(set(keys)) >= 1
    namespaces.run("ip", "-n", far.name, "link", "set", far.link, "down")


def test_an_upgrade_keeps_the_queue_and_a_downgrade_is_refused(machine, tmp_path):
    held = chat(machine, "Who wrote the book of the sea?", metadata={"n": "2"})
    assert held["outrider"]["decision"] == "queued"
    count = rows(machine)
    assert machine.stop_service() == 0  # what the package's own script does where systemd runs
    newer = bare_machine.repacked(DEB, tmp_path, "99.0.0")
    newer.rename(machine.path("/tmp/newer.deb"))
    machine.run("dpkg", "-i", "/tmp/newer.deb")
    machine.start_service()
    assert rows(machine) == count
    refused = machine.run("dpkg", "-i", "/tmp/outrider.deb", check=False)
    assert refused.returncode != 0
    assert "99.0.0-1 is installed" in refused.stderr
    assert rows(machine) == count


def test_removal_keeps_the_data_and_a_purge_takes_it(machine):
    assert machine.stop_service() == 0
    name = machine.run("sh", "-c", "dpkg -l | awk '/ outrider/ {print $2}'").stdout.strip()
    machine.run("dpkg", "-r", name)
    assert not machine.path("/usr/lib/outrider").exists()
    assert machine.path(f"{bare_machine.DATA}/outrider.db").exists()
    machine.run("dpkg", "-P", name)
    assert not machine.path(bare_machine.DATA).exists()
    assert not machine.path("/etc/outrider").exists()
    assert machine.run("getent", "passwd", "outrider", check=False).returncode != 0
