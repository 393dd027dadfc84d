"""outrider update: at every moment one whole program is in place, and the queue is as it was."""

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from fakes import releases
from fakes.daemon_process import DaemonProcess

from agent.cli import updating
from agent.cli.child_daemon import until_healthy
from agent.cli.client import find_daemon
from agent.cli.update import _folder as folder_of_the_program
from agent.errors import ConfigError, DiskFull, ModelRejected, StorageError
from agent.models.minisign import SecretKey
from agent.service import release
from agent.storage import connection, keys

OLD, NEW = "1.0.0", "9.0.0"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory whose queue holds one row."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("device")).start()
    assert daemon.chat("unsure of this").json()["outrider"]["decision"] == "queued"
    assert daemon.stop() == 0
    return daemon.data


@pytest.fixture
def installed(tmp_path, data):
    folder = releases.folder(tmp_path / "opt", releases.program(OLD))
    return updating.Installed(folder, data, None)


def version(installed):
    return subprocess.run(
        [str(installed.folder / "outrider"), "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[-1]


def queued(data):
    db = connection.connect(data / connection.DATABASE_NAME, keys.load(data).material)
    try:
        return db.execute("SELECT count(*) FROM escalations").fetchone()[0]
    finally:
        db.close()


def signed(tmp_path, script, **changes):
    made = releases.folder(tmp_path / "made", script)
    for name, text in changes.items():
        (made / name).write_text(text)
    path = releases.archive(tmp_path, made)
    return release.checked(path, (releases.KEY.public,))


def test_the_new_program_takes_the_place_and_the_old_one_is_kept_beside_it(tmp_path, installed):
    told = []
    assert updating.update(signed(tmp_path, releases.program(NEW)), installed, told.append, None) == NEW
    assert version(installed) == NEW
    assert (
        version(updating.Installed(installed.folder.with_name("outrider.previous"), installed.data_path, None)) == OLD
    )
    assert sorted(path.name for path in installed.folder.parent.iterdir()) == ["outrider", "outrider.previous"]
    assert queued(installed.data_path) == 1
    assert (installed.data_path / f"before-{NEW}.db").exists()
    assert told == ["unpacking", f"trying {NEW} on a copy of the database"]


def test_a_program_that_does_not_start_changes_nothing(tmp_path, installed):
    broken = signed(tmp_path, releases.program(NEW, unless='case "$*" in *serve*) true ;; *) false ;; esac'))
    with pytest.raises(ModelRejected, match="does not get ready: broken on purpose; nothing was changed"):
        updating.update(broken, installed, print, None)
    assert version(installed) == OLD
    assert queued(installed.data_path) == 1
    assert not list(installed.data_path.glob(".trial-*"))


def test_a_program_that_does_not_take_the_configuration_changes_nothing(tmp_path, installed):
    broken = signed(tmp_path, releases.program(NEW, unless='case "$*" in *show*) true ;; *) false ;; esac'))
    with pytest.raises(ConfigError, match="does not take the present configuration: broken on purpose"):
        updating.update(broken, installed, print, None)
    assert version(installed) == OLD


def test_a_program_that_fails_in_its_place_goes_back_with_the_database(tmp_path, installed, monkeypatch):
    monkeypatch.setattr(updating, "READY_WITHIN_S", 20.0)
    started = []

    def restart():
        command = [str(installed.folder / "outrider"), "--data-dir", str(installed.data_path), "--set", "server.port=0"]
        if version(installed) == NEW:
            raise ConfigError("the manager says that it failed")
        started.append(subprocess.Popen([*command, "serve"], stderr=subprocess.DEVNULL))

    told = []
    with pytest.raises(ModelRejected, match="the old program and its database are back"):
        updating.update(signed(tmp_path, releases.program(NEW)), installed, told.append, restart)
    assert told[-1] == f"{NEW} does not get ready: going back"
    assert version(installed) == OLD
    until_healthy(installed.data_path, started[0], 20.0)
    started[0].terminate()
    assert started[0].wait(30) == 0
    assert find_daemon(installed.data_path) is None
    assert queued(installed.data_path) == 1


def test_where_nothing_can_be_changed_the_old_program_is_started_again(tmp_path, installed, monkeypatch):
    def refused(*_):
        raise StorageError("no space is left")

    monkeypatch.setattr(updating, "_tried", lambda *_: None)
    monkeypatch.setattr(updating, "_database_kept", refused)
    started = []
    with pytest.raises(StorageError, match="no space is left"):
        updating.update(signed(tmp_path, releases.program(NEW)), installed, print, lambda: started.append(OLD))
    assert started == [OLD]
    assert version(installed) == OLD


def test_a_daemon_that_was_started_by_hand_is_stopped_and_that_is_said(tmp_path, installed, monkeypatch):
    monkeypatch.setattr(updating, "_tried", lambda *_: None)
    monkeypatch.setattr(updating, "_stop", lambda *_: None)
    monkeypatch.setattr(updating, "find_daemon", lambda _: "running")
    told = []
    updating.update(signed(tmp_path, releases.program(NEW)), installed, told.append, None)
    assert told[-1].endswith("start it again")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_than_on_linux_it_says_how(monkeypatch, system):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(ConfigError, match="on Linux only: stop the service, put the folder"):
        folder_of_the_program()


def test_a_disk_that_fills_up_while_it_unpacks_changes_nothing(tmp_path, data, monkeypatch):
    disk = tmp_path / "opt"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: a full disk was NOT tried ({made.stderr.decode().strip()})")
    try:
        installed = updating.Installed(releases.folder(disk, releases.program(OLD)), data, None)
        found = signed(tmp_path, releases.program(NEW), library=os.urandom(1 << 20).hex())
        with pytest.raises(DiskFull, match=r"needs 66 MiB at .*nothing was changed"):
            updating.update(found, installed, print, None)
        monkeypatch.setattr(release, "_need_room", lambda *_: None)  # there was room when it looked
        with pytest.raises(DiskFull, match=r"no space left for .*nothing was changed"):
            updating.update(found, installed, print, None)
        assert version(installed) == OLD
        assert [path.name for path in disk.iterdir()] == ["outrider"]
        assert queued(data) == 1
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from fakes import releases
from agent.cli import updating
from agent.cli.child_daemon import until_healthy
from agent.service import release
archive, folder, data, step = sys.argv[1:]
steps = 0
def count(*_):
    global steps
    steps += 1
    if steps == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
def after(function):
    def called(*arguments):
        count()
        result = function(*arguments)
        count()
        return result
    return called
updating._tried = lambda *_: None  # it changes nothing, and takes long
for name in ("_tried", "_database_kept", "exchange"):
    setattr(updating, name, after(getattr(updating, name)))
found = release.checked(Path(archive), (releases.KEY.public,))
updating.update(found, updating.Installed(Path(folder), Path(data), None), count, None)
"""


@pytest.mark.parametrize("step", range(1, 9))
def test_killed_at_any_step_one_whole_program_is_in_place(tmp_path, installed, step, monkeypatch):
    path = releases.archive(tmp_path, releases.folder(tmp_path / "made", releases.program(NEW)))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(installed.folder), str(installed.data_path), str(step)],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}:{os.environ.get('PYTHONPATH', '')}"},
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert version(installed) == (NEW if step == 8 else OLD)
    release.against_its_bill(installed.folder)
    assert queued(installed.data_path) == 1
    # And the next update goes through.
    monkeypatch.setattr(updating, "_tried", lambda *_: None)
    found = release.checked(path, (releases.KEY.public,))
    assert updating.update(found, installed, lambda _: None, None) == NEW
    assert queued(installed.data_path) == 1


def altered(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_not_signed_by_a_trusted_key_is_not_unpacked(tmp_path):
    path = releases.archive(tmp_path, releases.folder(tmp_path / "made", releases.program(NEW)))
    stranger = SecretKey(b"stranger", b"s" * 32)
    with pytest.raises(ConfigError, match="no key for releases is trusted yet"):
        release.checked(path, ())
    with pytest.raises(ModelRejected, match="by another key"):
        release.checked(path, (stranger.public,))
    assert release.checked(path, (stranger.public, releases.KEY.public)).comment == path.name
    altered(path)
    with pytest.raises(ModelRejected, match="does not hold"):
        release.checked(path, (releases.KEY.public,))
    with pytest.raises(ConfigError, match="side by side"):
        release.checked(tmp_path / "nothing.tar.xz", (releases.KEY.public,))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda made: (made / "_internal" / "data").write_text("other"), "_internal/data in the release is not what"),
        (lambda made: (made / "_internal" / "more").write_text("x"), "_internal/more is in the release, and not in"),
        (lambda made: (made / "_internal" / "data").unlink(), "_internal/data is missing"),
        (
            lambda made: (made / "sbom.cdx.json").write_text("{}"),
            "the bill of materials of this release cannot be read",
        ),
    ],
)
def test_a_signed_release_must_hold_what_its_bill_says(tmp_path, spoil, words):
    made = releases.folder(tmp_path / "made", releases.program(NEW))
    spoil(made)
    found = release.checked(releases.archive(tmp_path, made), (releases.KEY.public,))
    with pytest.raises(ModelRejected, match=words):
        release.unpacked(found, tmp_path / "place")


def test_what_is_unpacked_is_what_was_signed_whatever_becomes_of_the_file(tmp_path):
    found = signed(tmp_path, releases.program(NEW))
    found.archive.write_bytes(b"another one")
    assert (release.unpacked(found, tmp_path / "place") / "outrider").read_text() == releases.program(NEW)


def link(name, target):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = tarfile.SYMTYPE, target
    return found


def pipe():
    found = tarfile.TarInfo("outrider/pipe")
    found.type = tarfile.FIFOTYPE
    return found


@pytest.mark.parametrize("filters", [True, False], ids=["3.11.4", "3.11.2"])
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([tarfile.TarInfo("elsewhere/file")], "outside of its folder"),
        ([tarfile.TarInfo("outrider/../elsewhere")], "outside of its folder"),
        ([tarfile.TarInfo("/elsewhere")], "outside of its folder"),
        ([link("outrider/a", "../elsewhere")], "leaves its folder"),
        ([link("outrider/a", "/elsewhere")], "leaves its folder"),
        ([link("outrider/a", "b/../../elsewhere")], "leaves its folder"),
        ([link("outrider/a", "b"), tarfile.TarInfo("outrider/a/file")], "outside of its folder"),
        ([pipe()], "no file, folder or link"),
    ],
)
def test_nothing_is_written_outside_of_the_folder(tmp_path, monkeypatch, members, words, filters):
    if not filters:  # as in the Python of Debian 12
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = tmp_path / "evil.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as writer:
        for member in members:
            writer.addfile(member)
    releases.sign(path)
    with pytest.raises(ModelRejected, match=words):
        release.unpacked(release.checked(path, (releases.KEY.public,)), tmp_path / "place")
    assert {one.name for one in (tmp_path / "place").rglob("*")} <= {"outrider", "a"}
    assert not list(tmp_path.rglob("elsewhere"))


def test_a_release_with_links_comes_out_as_it_went_in(tmp_path):
    made = releases.folder(tmp_path / "made", releases.program(NEW))
    (made / "_internal" / "deep").mkdir()
    (made / "_internal" / "deep" / "link").symlink_to("../data")
    found = release.unpacked(
        release.checked(releases.archive(tmp_path, made), (releases.KEY.public,)), tmp_path / "place"
    )
    assert (found / "_internal" / "deep" / "link").readlink() == Path("../data")
    assert os.access(found / "outrider", os.X_OK)
