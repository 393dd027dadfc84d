"""Names to addresses, without ever waiting longer than asked.

``getaddrinfo`` cannot be cancelled. On asyncio's shared threads a hanging one would take a
place for as long as the system's resolver likes, and hold up the end of the process. Here
each lookup has a daemon thread of its own. Callers share one; the next after somebody's
patience ran out begins another, because the line may be back and the hanging one goes on
for many seconds. At most sixteen of a target are under way.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address

MOST_ADDRESSES = 4
MOST_LOOKUPS = 16  # a system that tries three servers twice hangs for half a minute


class Resolver:
    """Looks names up. One per target; used on one event loop."""

    def __init__(self) -> None:
        self._shared: dict[tuple[str, int], asyncio.Future[list[str]]] = {}
        self._under_way = 0

    async def addresses(self, host: str, port: int) -> list[str]:
        """Return at most four addresses of ``host``, families taking turns, in the system's order.

        Raises OSError (socket.gaierror) when there is none. Cancel it to stop waiting.
        """
        if _is_address(host):
            return [host]
        future = self._shared.get((host, port))
        if future is None:
            future = self._start(host, port)
        try:
            return await asyncio.shield(future)  # a caller that stops waiting leaves the lookup to the others
        except asyncio.CancelledError:
            if self._under_way < MOST_LOOKUPS and self._shared.get((host, port)) is future:
                del self._shared[host, port]
            raise

    def _start(self, host: str, port: int) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        self._shared[host, port] = future
        self._under_way += 1

        def forget(done: asyncio.Future[list[str]]) -> None:
            self._under_way -= 1
            if self._shared.get((host, port)) is done:
                del self._shared[host, port]
            if not done.cancelled():
                done.exception()  # nobody may be waiting any more

        future.add_done_callback(forget)
        threading.Thread(target=_look_up, args=(loop, future, host, port), name="resolver", daemon=True).start()
        return future


def _look_up(loop: asyncio.AbstractEventLoop, future: asyncio.Future[list[str]], host: str, port: int) -> None:
    error: OSError | None = None
    addresses: list[str] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = _take_turns([(family, str(address[0])) for family, _, _, _, address in found])
    except OSError as caught:
        error = caught
    except UnicodeError:
        error = socket.gaierror(socket.EAI_NONAME, "not a host name")

    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(addresses)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop was closed while the system's resolver hung: nobody is left to tell


def _take_turns(found: list[tuple[int, str]]) -> list[str]:
    """Put the families in turn, so that one without a route does not use the time of the other up."""
    by_family: dict[int, list[str]] = {}
    for family, address in found:
        by_family.setdefault(family, []).append(address)
    lists = list(by_family.values())
    longest = max(map(len, lists), default=0)
    turns = [addresses[at] for at in range(longest) for addresses in lists if at < len(addresses)]
    return list(dict.fromkeys(turns))[:MOST_ADDRESSES]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
