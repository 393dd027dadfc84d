"""Root works on another user's data as that user: else it leaves files there that the daemon cannot read."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from agent.errors import StorageError


def become_owner(data_path: Path) -> None:
    """Give up root for the owner of the data directory, for good. Does nothing for others, or where it is root's own.

    Raises StorageError when the owner is no user of this machine.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = data_path.stat().st_uid
    except OSError:
        return  # not there yet: whoever makes it owns it
    if owner == 0:
        return
    try:
        user = pwd.getpwuid(owner)
    except KeyError:
        raise StorageError(
            f"{data_path} belongs to user number {owner}, whom this machine does not know: chown it to its user"
        ) from None
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(owner)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
