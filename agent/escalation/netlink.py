"""Tells when the device's own network changes (Linux, rtnetlink). Nobody is contacted for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator

from agent.telemetry import LOG

DEBOUNCE_S = 1.0

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link, IPv4 address and route, IPv6 address and route
_IFF_RUNNING = 0x40
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_RECEIVE_BYTES = 1 << 16


class LinkWatcher:
    """Calls ``on_change`` at most once a second while links, addresses or routes come."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._running: dict[int, bool] = {}  # by index of the interface

    def start(self) -> bool:
        """Listen on the running loop. False where the system offers none: then backoff alone decides."""
        if not hasattr(socket, "AF_NETLINK"):
            return False
        try:
            watcher = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError as error:
            LOG.info("network changes are not watched (%s); probes follow their backoff alone", error.strerror)
            return False
        try:
            watcher.setblocking(False)
            watcher.bind((0, _GROUPS))
        except OSError as error:
            watcher.close()
            LOG.info("network changes are not watched (%s); probes follow their backoff alone", error.strerror)
            return False
        self._socket = watcher
        asyncio.get_running_loop().add_reader(watcher, self._read)
        return True

    def stop(self) -> None:
        """Stop listening; no call comes after this."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._changed()  # ENOBUFS: messages were dropped, so something did change
            return
        if self.tells_change(data):
            self._changed()

    def tells_change(self, data: bytes) -> bool:
        """Return whether a datagram holds something new: a link that runs, an address, a route."""
        news = [self._is_new(kind, payload) for kind, payload in messages(data)]  # each is noted, not only the first
        return True in news

    def _is_new(self, kind: int, payload: bytes) -> bool:
        if kind != RTM_NEWLINK:
            return kind in {RTM_NEWADDR, RTM_NEWROUTE}
        if len(payload) < _LINK.size:
            return False
        _, _, index, flags, _ = _LINK.unpack_from(payload)
        running = bool(flags & _IFF_RUNNING)
        # Wireless drivers repeat RTM_NEWLINK for statistics; only coming up is news.
        came_up = running and not self._running.get(index, False)
        self._running[index] = running
        return came_up

    def _changed(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DEBOUNCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._on_change()


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, payload) of each whole message in a datagram; a broken length ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
