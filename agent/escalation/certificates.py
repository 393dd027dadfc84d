"""Whom we take a server for that is on the network: one way to check its certificate, for all that leaves."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2


def verifying(ca_file: str = "") -> ssl.SSLContext:
    """Return a context that trusts the system's authorities, or those of ``ca_file`` alone. TLS 1.2 at least.

    Raises OSError or ssl.SSLError for a file that cannot be read.
    """
    if ca_file:
        context = ssl.create_default_context(cafile=str(Path(ca_file).expanduser()))
    else:
        context = httpx2.create_ssl_context(trust_env=False)
    context.hostname_checks_common_name = False  # RFC 9525: the names of a host stand in subjectAltName alone
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    return context
