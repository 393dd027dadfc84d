"""A worker locks itself in before it looks at a model file. Linux on x86_64 and aarch64.

What a hostile model could still do afterwards: read files that the user may read, and use
memory and processor time. What it cannot: open a connection, start a program or a process,
write, rename or remove a file, look into or signal another process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from typing import NamedTuple

from agent.engine.refusals import ModelUnloadable

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1  # all threads of the process, not only the calling one

# Of struct seccomp_data: number at 0, architecture at 4, arguments of 8 bytes from 16 (low half first).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Classic BPF.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000  # plus the errno
_KILL = 0x80000000

_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_X32_BIT = 0x40000000  # second set of numbers on x86_64


class _Machine(NamedTuple):
    audit: int
    refused: dict[str, int]
    clone: int
    opens: dict[int, int]  # number of an open call -> index of its flags argument
    clone3: int  # its flags are out of a filter's sight; glibc falls back to clone
    seccomp: int


# The same on every architecture: numbers above 423.
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432, "pidfd_open": 434, "openat2": 437,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "fchmodat2": 452,
}  # fmt: skip

_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        refused={
            "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50,
            "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "truncate": 76, "rename": 82,
            "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90,
            "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "rt_sigqueueinfo": 129,
            "mknod": 133, "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "init_module": 175,
            "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "mkdirat": 258, "mknodat": 259,
            "fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268,
            "unshare": 272, "accept4": 288, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
            "open_by_handle_at": 304, "sendmmsg": 307, "setns": 308, "process_vm_readv": 310,
            "process_vm_writev": 311, "finit_module": 313, "renameat2": 316, "kexec_file_load": 320, "bpf": 321,
            "execveat": 322, "userfaultfd": 323, **_COMMON,
        },
        clone=56,
        opens={2: 1, 257: 2},
        clone3=435,
        seccomp=317,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        refused={
            "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38,
            "umount2": 39, "mount": 40, "pivot_root": 41, "truncate": 45, "chroot": 51, "fchmod": 52,
            "fchmodat": 53, "fchownat": 54, "fchown": 55, "kexec_load": 104, "init_module": 105, "ptrace": 117,
            "kill": 129, "rt_sigqueueinfo": 138, "unshare": 97, "socket": 198, "socketpair": 199, "bind": 200,
            "listen": 201, "accept": 202, "connect": 203, "sendto": 206, "sendmsg": 211, "add_key": 217,
            "request_key": 218, "keyctl": 219, "execve": 221, "rt_tgsigqueueinfo": 240, "perf_event_open": 241,
            "accept4": 242, "open_by_handle_at": 265, "setns": 268, "sendmmsg": 269, "process_vm_readv": 270,
            "process_vm_writev": 271, "finit_module": 273, "renameat2": 276, "bpf": 280, "execveat": 281,
            "userfaultfd": 282, "kexec_file_load": 294, **_COMMON,
        },
        clone=220,
        opens={56: 2},
        clone3=435,
        seccomp=277,
    ),
}  # fmt: skip


def confine() -> tuple[str, ...]:
    """Lock this process in with all its threads, for good.

    Returns the names of what is in force: on another system or processor than Linux on
    x86_64 and aarch64 only "rlimits". Raises ModelUnloadable when the kernel refuses.
    """
    sys.dont_write_bytecode = True
    machine = _MACHINES.get(platform.machine()) if sys.platform == "linux" else None
    try:
        _limit(resource.RLIMIT_CORE, 0)  # a core file would hold prompts
        _limit(resource.RLIMIT_FSIZE, 0)  # pipes are not files
        if machine is None:
            return ("rlimits",)
        _install(_program(machine), machine.seccomp)
    except OSError as error:
        raise ModelUnloadable(f"the worker cannot lock itself in: {error}; see engine.confine") from error
    return ("rlimits", "no_new_privs", "seccomp")


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most, most if hard == resource.RLIM_INFINITY else min(most, hard)))


def _program(machine: _Machine) -> bytes:
    """Return the filter: what is not refused by name is allowed."""
    refuse = _statement(_RETURN, _REFUSE | errno.EPERM)
    code = [
        _statement(_LOAD, _ARCHITECTURE),
        _jump(_JUMP_EQUAL, machine.audit, 1, 0),
        _statement(_RETURN, _KILL),
        _statement(_LOAD, _NUMBER),
        _jump(_JUMP_AT_LEAST, _X32_BIT, 0, 1),
        refuse,
        _jump(_JUMP_EQUAL, machine.clone3, 0, 1),
        _statement(_RETURN, _REFUSE | errno.ENOSYS),
    ]
    for number in sorted(machine.refused.values()):
        code += [_jump(_JUMP_EQUAL, number, 0, 1), refuse]
    # Threads are allowed, processes are not.
    code += [
        _jump(_JUMP_EQUAL, machine.clone, 0, 4),
        _statement(_LOAD, _ARGUMENTS),
        _jump(_JUMP_ANY_BIT, _CLONE_THREAD, 1, 0),
        refuse,
        _statement(_RETURN, _ALLOW),
    ]
    # Files may be opened for reading.
    for number, argument in machine.opens.items():
        code += [
            _jump(_JUMP_EQUAL, number, 0, 4),
            _statement(_LOAD, _ARGUMENTS + 8 * argument),
            _jump(_JUMP_ANY_BIT, _WRITING, 0, 1),
            refuse,
            _statement(_RETURN, _ALLOW),
        ]
    code.append(_statement(_RETURN, _ALLOW))
    return b"".join(code)


def _statement(code: int, value: int) -> bytes:
    return _jump(code, value, 0, 0)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _install(program: bytes, seccomp: int) -> None:
    # A char pointer and not a char array: the program holds zero bytes and is read by length.
    structure = _FilterProgram(len(program) // 8, program)
    library = ctypes.CDLL(None, use_errno=True)
    _checked(library.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
    _checked(
        library.syscall(
            ctypes.c_long(seccomp),
            ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
            ctypes.c_ulong(SECCOMP_FILTER_FLAG_TSYNC),
            ctypes.byref(structure),
        )
    )


def _checked(result: int) -> None:
    if result != 0:
        # A positive result of TSYNC names a thread that could not follow.
        number = ctypes.get_errno() if result < 0 else errno.EBUSY
        raise OSError(number, os.strerror(number))
