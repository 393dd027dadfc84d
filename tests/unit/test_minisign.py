"""Keys and signatures are those of minisign."""

import errno
import os
import shutil
import stat
import subprocess

import pytest

from agent.errors import ModelRejected, StorageError
from agent.models.minisign import SecretKey, own_key, parse_public, verify

KEY = SecretKey(b"8 bytes!", b"s" * 32)
OTHER = SecretKey(b"8 bytes!", b"t" * 32)


def test_a_signature_covers_data_and_comment():
    signature = KEY.sign(b"data", "made today")
    assert verify(KEY.public, b"data", signature) == "made today"
    assert KEY.sign(b"data", "made today") == signature
    for data, text in ((b"Data", signature), (b"data", signature.replace("today", "later"))):
        with pytest.raises(ModelRejected, match="does not hold"):
            verify(KEY.public, data, text)
    with pytest.raises(ModelRejected, match="does not hold"):
        verify(OTHER.public, b"data", signature)


def test_every_flipped_bit_of_a_signature_is_seen():
    signature = KEY.sign(b"data", "c").encode()
    start = signature.index(b"\n") + 1  # what comes before says "untrusted" itself
    for at in range(start * 8, len(signature) * 8):
        flipped = bytearray(signature)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(ModelRejected):
            verify(KEY.public, b"data", bytes(flipped).decode("utf-8", "replace"))


@pytest.mark.parametrize("text", ["", "RW", "x" * 10_000, "RW" + "A" * 54 + "==", "untrusted comment: a\n", "é"])
def test_what_is_no_public_key(text):
    with pytest.raises(ModelRejected, match="public key of minisign"):
        parse_public(text)


def test_a_public_key_is_read_from_its_text_and_its_file():
    assert parse_public(str(KEY.public)) == parse_public(KEY.public.file) == KEY.public
    assert str(KEY.public).startswith("RW")
    assert len(KEY.public.fingerprint.split()) == 8
    assert "s" * 32 not in repr(KEY)


def test_the_key_of_this_device_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "data" / "bundle-key"
    assert own_key(path, make=False) is None
    key = own_key(path, make=True)
    assert own_key(path, make=True) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    path.write_text(text.replace(text[60], "A" if text[60] != "A" else "B"))
    with pytest.raises(StorageError, match="remove it to have a new key made"):
        own_key(path, make=True)


@pytest.mark.skipif(not shutil.which("minisign"), reason="minisign is not installed: apt install minisign")
def test_minisign_itself_agrees(tmp_path):
    path = tmp_path / "key"
    key = own_key(path, make=True)
    (tmp_path / "key.pub").write_text(key.public.file)
    data = tmp_path / "data"
    data.write_bytes(b"x" * 5000)
    signed = tmp_path / "data.minisig"
    signed.write_text(key.sign(data.read_bytes(), "by us"))
    told = subprocess.run(
        ["minisign", "-V", "-p", tmp_path / "key.pub", "-m", data], capture_output=True, text=True, check=True
    )
    assert "by us" in told.stdout
    subprocess.run(["minisign", "-S", "-s", path, "-m", data, "-t", "by minisign"], capture_output=True, check=True)
    assert verify(key.public, data.read_bytes(), signed.read_text()) == "by minisign"


def test_a_key_that_could_not_be_written_is_not_in_the_way_of_the_next(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "key"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            own_key(path, make=True)
    assert own_key(path, make=True) == own_key(path, make=False) is not None
