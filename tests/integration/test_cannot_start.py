"""What a daemon says that cannot start: one clear line, an exit code, and nothing damaged."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys

import pytest
from fakes.command_line import outrider
from fakes.daemon_process import DaemonProcess


def fails(daemon):
    result = subprocess.run(
        [sys.executable, "-m", "agent", "serve"],
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.strip()]
    assert said, "it said nothing"
    return result.returncode, said[-1]


@pytest.fixture
def used(tmp_path):
    """A data directory with one request in it, and no daemon."""
    daemon = DaemonProcess(tmp_path / "device").start()
    request_id = daemon.chat("unsure").json()["outrider"]["request_id"]
    assert daemon.stop() == 0
    yield daemon
    daemon.start()
    assert daemon.request(request_id)["state"] == "queued"
    assert daemon.stop() == 0


def test_second_instance_on_one_data_directory(tmp_path):
    daemon = DaemonProcess(tmp_path / "device").start()
    code, line = fails(daemon)
    assert code == 75
    assert str(daemon.pid) in line
    assert daemon.chat("hello").status_code == 200
    daemon.stop()


def test_port_taken(used):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        used.configure(f"[server]\nport = {port}\n")
        code, line = fails(used)
    used.configure("")
    assert code == 75
    assert str(port) in line


def test_wrong_key(used):
    key = used.data / "key"
    right = key.read_bytes()
    mode = key.stat().st_mode
    key.chmod(0o600)
    key.write_bytes(bytes(reversed(right.strip())) if len(right.strip()) == 64 else os.urandom(32))
    code, line = fails(used)
    key.write_bytes(right)
    key.chmod(mode)
    assert code == 74
    assert "key" in line


def test_key_readable_by_others(used):
    key = used.data / "key"
    mode = key.stat().st_mode
    key.chmod(0o644)
    code, line = fails(used)
    key.chmod(mode)
    assert code == 74
    assert "chmod" in line


def test_missing_key_is_not_replaced_by_a_new_one(used):
    key = used.data / "key"
    kept = key.with_suffix(".kept")
    key.rename(kept)
    code, line = fails(used)
    assert not key.exists()
    kept.rename(key)
    assert code == 74
    assert "key" in line


def test_foreign_database(used):
    database = next(used.data.glob("*.db"))
    kept = shutil.move(database, used.data / "kept")
    for suffix in ("-wal", "-shm"):
        (used.data / (database.name + suffix)).unlink(missing_ok=True)
    with sqlite3.connect(database) as connection:
        connection.execute("create table shopping (item)")
    connection.close()
    foreign = database.read_bytes()
    code, _ = fails(used)
    assert database.read_bytes() == foreign
    database.unlink()
    shutil.move(kept, database)
    assert code == 74


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write everywhere; the unit tests cover it with a file in the way"
)
def test_no_write_permission(used):
    used.data.chmod(0o500)
    code, _ = fails(used)
    used.data.chmod(0o700)
    assert code == 74


def test_a_file_where_the_data_directory_should_be(tmp_path):
    daemon = DaemonProcess(tmp_path / "device")
    daemon.data.write_text("in the way")
    code, line = fails(daemon)
    assert code == 74
    assert str(daemon.data) in line


def test_unknown_key_in_the_configuration(tmp_path):
    daemon = DaemonProcess(tmp_path / "device", "[sever]\n")
    code, line = fails(daemon)
    assert code == 78
    assert "sever" in line


def test_tls_files_that_cannot_be_used_are_named_before_anything_listens(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    daemon = DaemonProcess(tmp_path / "device", f'[server]\nport = 0\ntls_cert = "{certificate}"\ntls_key = "{key}"\n')
    for content in (None, "no PEM"):
        if content:
            certificate.write_text(content)
            key.write_text(content)
        code, line = fails(daemon)
        assert code == 78
        assert str(certificate) in line
        assert not daemon.data.exists()
        result = outrider(daemon, "requests", "list", code=None)
        assert "internal error" not in result.stderr


def test_unknown_estimator(tmp_path):
    daemon = DaemonProcess(tmp_path / "device", '[confidence]\nestimator = "vibes"\n')
    code, line = fails(daemon)
    assert code == 78
    assert "lowest_tenth" in line
