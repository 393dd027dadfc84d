"""The port is taken, and listens, before anything else is started; what runs beside the server goes on."""

import asyncio
import socket

import msgspec
import pytest

from agent import daemon
from agent.errors import AddressInUse
from agent.settings import ServerSettings, Settings


def config(port):
    return msgspec.structs.replace(Settings(), server=ServerSettings(port=port))


def test_an_early_caller_waits_and_is_not_refused():
    listener = daemon._listen(config(0))
    with listener, socket.create_connection(listener.getsockname()):
        pass


def test_a_taken_port_is_told_at_once():
    with daemon._listen(config(0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(AddressInUse, match=str(port)):
            daemon._listen(config(port))


async def test_a_fault_in_maintenance_does_not_end_it(monkeypatch):
    monkeypatch.setattr(daemon, "MAINTAIN_EVERY_S", 0)
    again = asyncio.Event()

    class Faulty:
        faults = iter([RuntimeError("a bug")])

        async def save(self):
            if error := next(self.faults, None):
                raise error

        async def maintain(self, now_ms):
            again.set()

    maintaining = asyncio.create_task(daemon._maintain(Faulty(), Faulty()))
    await asyncio.wait((maintaining, asyncio.create_task(again.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert not maintaining.done()
    maintaining.cancel()


async def test_an_answer_in_two_pieces_is_not_held_back():
    """Header and body are written one after the other: with Nagle's algorithm the body waits for the client."""
    undelayed = asyncio.get_running_loop().create_future()

    async def answer(reader, writer):
        undelayed.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with daemon._listen(config(0)) as listener:
        async with await asyncio.start_server(answer, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await undelayed
            writer.close()
