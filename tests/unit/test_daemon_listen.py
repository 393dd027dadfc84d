"""The port is taken, and listens, before anything else is started or announced."""

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
