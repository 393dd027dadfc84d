"""What the operating system refused, in one line: what, why, what to do."""

from __future__ import annotations

import errno
import getpass
import os

_REMEDIES = {
    errno.EACCES: "give user {user} access to it, or put it where everybody has",
    errno.EPERM: "give user {user} access to it, or put it where everybody has",
    errno.ENOSPC: "free some space there, then try again",
    errno.EDQUOT: "free some space there, then try again",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "check the name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "check the name: a part of it is a file",
    errno.EIO: "the disk cannot be read or written there: check it (dmesg)",
}


def told(error: OSError) -> str | None:
    """Return the line for a file that could not be used; None when it is no such error."""
    if error.filename is None or error.errno not in _REMEDIES:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{name}: {error.strerror}; {_REMEDIES[error.errno].format(user=_user())}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as containers have
        return str(os.geteuid())
