"""A target with TLS in a network namespace of its own."""

import asyncio
import contextlib
import ssl
import threading

from fakes.cloud import Cloud


@contextlib.contextmanager
def tls_cloud(namespace, host, ca, *, name=None):
    """A target with TLS on an address of its namespace; its certificate is for ``name``, or for the address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name or host).configure_cert(context)
    loop = asyncio.new_event_loop()
    cloud = Cloud(tls=context, host=host, port=8443)
    started = threading.Event()

    def live():
        loop.run_until_complete(cloud.up())
        started.set()
        loop.run_forever()
        loop.run_until_complete(cloud.down())
        loop.close()

    future = namespace.pool.submit(live)
    started.wait(10)
    try:
        yield cloud
    finally:
        loop.call_soon_threadsafe(loop.stop)
        future.result()
