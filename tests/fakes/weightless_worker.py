"""The real worker process (frames, threads, confinement) on a runtime without weights.

The name of the runtime is the first argument: ``fake``, or ``probe`` which tries from inside
what a confined worker must not do and reports it as the reason not to load. The path of the
model names the attempts; empty for all.
"""

import ctypes
import errno
import os
import platform
import resource
import socket
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

import msgspec

from agent.engine import runtime, worker
from agent.engine.runtime import ModelUnloadable

X86 = platform.machine() == "x86_64"
PROGRAM = str(Path(__file__).resolve())
COMMAND = [sys.executable, PROGRAM, "fake"]
PROBE_COMMAND = [sys.executable, PROGRAM, "probe"]


def attempts():
    libc = ctypes.CDLL(None, use_errno=True)

    def libc_call(name, *arguments):
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    return {
        "socket": socket.socket,
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "socket pair": socket.socketpair,
        "inherited connect": lambda: libc_call("connect", 0, b"\0" * 16, 16),
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "ptrace": lambda: libc_call("ptrace", 0, 0, 0, 0),
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "read the parent's memory": lambda: libc_call("process_vm_readv", os.getppid(), 0, 0, 0, 0, 0),
        "create a file": lambda: os.open("/tmp/does-not-exist", os.O_CREAT | os.O_WRONLY),
        "open for writing": lambda: os.open(PROGRAM, os.O_WRONLY),
        "remove a file": Path("/tmp/does-not-exist").unlink,
        "rename a file": lambda: Path("/tmp/does-not-exist").rename("/tmp/other"),
        "make a folder": Path("/tmp/does-not-exist").mkdir,
        "change a mode": lambda: Path(PROGRAM).chmod(0o644),
        "unshare": lambda: libc_call("unshare", 0x10000000),
        "io_uring": lambda: libc_call("syscall", 425, 1, 0),
        "bpf": lambda: libc_call("syscall", 321 if X86 else 280, 0, 0, 0),
        # glibc forks by clone; the old call (process_madvise where there is no such one) is refused as well.
        "bare fork": lambda: libc_call("syscall", 57 if X86 else 440, 0, 0, 0, 0, 0),
    }


class ProbeRuntime:
    def __init__(self, load):
        found = {}
        chosen = load.model.path.split(",") if load.model.path else attempts()
        for name in chosen:
            attempt = attempts()[name]
            try:
                attempt()
                found[name] = "done"
            except OSError as error:
                found[name] = errno.errorcode.get(error.errno, str(error.errno))
        thread = threading.Thread(target=lambda: found.update(thread="started"))
        thread.start()
        thread.join()
        found["read a file"] = str(len(Path(PROGRAM).read_bytes()) > 0)
        found["core"] = str(resource.getrlimit(resource.RLIMIT_CORE))
        found["status"] = "".join(
            line
            for line in Path("/proc/self/status").read_text().splitlines(True)
            if line.startswith(("NoNew", "Seccomp:"))
        )
        print("a library's printf")
        raise ModelUnloadable(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    if sys.argv[1] == "fake":
        runtime.RUNTIMES["llama.cpp"] = "fakes.fake_runtime:FakeRuntime"
    else:
        sys.modules["weightless_worker"] = sys.modules["__main__"]
        runtime.RUNTIMES["llama.cpp"] = "weightless_worker:ProbeRuntime"
    sys.exit(worker.main([]))
