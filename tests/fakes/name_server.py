"""A name server on UDP port 53 of a network namespace: it answers, denies, fails or says nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Address

from fakes.namespaces import Namespace

_A, _IN = 1, 1
_REPLY, _RECURSION = 0x8000, 0x0180  # flags of a message: asked for and offered


class Manner(Enum):
    """What becomes of a question; the number is the code of the reply."""

    ANSWERS = 0
    FAILS = 2
    DENIES = 3
    SILENT = -1


class NameServer:
    """Knows one name. Set ``manner`` at any time."""

    def __init__(self, namespace: Namespace, host: str, known: str, address: str) -> None:
        self.manner = Manner.ANSWERS
        self._namespace = namespace
        self._host = host
        self._known = known
        self._address = IPv4Address(address).packed
        self._ready, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the name server does not start")

    def _serve(self) -> None:
        self._namespace.enter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.bind((self._host, 53))
            line.settimeout(0.2)
            self._ready.set()
            while not self._ended.is_set():
                try:
                    message, sender = line.recvfrom(4096)
                except TimeoutError:
                    continue
                if self.manner is not Manner.SILENT:
                    with contextlib.suppress(OSError):  # the line may be cut just now
                        line.sendto(self._reply(message), sender)

    def _reply(self, message: bytes) -> bytes:
        end = message.index(b"\0", 12) + 5  # the question: labels up to an empty one, its type, its class
        question = message[12:end]
        labels, (kind, _) = question[:-4], struct.unpack("!HH", question[-4:])
        name = b"".join(bytes([len(part)]) + part for part in self._known.encode().split(b".")) + b"\0"
        found = self.manner is Manner.ANSWERS and labels.lower() == name
        code = self.manner.value if self.manner is not Manner.ANSWERS or found else Manner.DENIES.value
        answer = b""
        if found and kind == _A:
            answer = b"\xc0\x0c" + struct.pack("!HHIH", _A, _IN, 0, 4) + self._address
        counts = struct.pack("!HHHH", 1, 1 if answer else 0, 0, 0)
        return message[:2] + struct.pack("!H", _REPLY | _RECURSION | code) + counts + question + answer

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def name_server(namespace: Namespace, host: str, known: str, address: str) -> Iterator[NameServer]:
    """Answer questions for ``known`` on an address of the namespace."""
    server = NameServer(namespace, host, known, address)
    try:
        yield server
    finally:
        server.close()
