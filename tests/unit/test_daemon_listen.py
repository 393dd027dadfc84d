"""The port is taken, and listens, before anything else is started or announced."""

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
