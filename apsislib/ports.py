"""The ports that agents connect to: where, and with what certificate and token."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from apsislib.config.keys import Server
from apsislib.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Port:
    """An address to listen on, and what is demanded there. No certificate: plain text."""

    host: str  # "*": every address of the machine
    port: int
    token: str = ""
    cert: Path | None = None
    key: Path | None = None


def ports(server: Server) -> tuple[list[Port], list[str]]:
    """The port that the server's file asks for, and what its operator should be told about it.

    Open to other hosts only with a certificate and a token: whoever is taken for an agent is given
    programs to run, and is believed about their success. Raises BadRequest.
    """
    cert, key = (None, None) if server.plain else (server.tls.cert_path, server.tls.key_path)
    if cert is not None and key is None:
        key = cert.with_suffix(".key")
    safe = bool(server.access_token) and (cert is not None or server.plain)
    remedy = "set procstar.agent.server.access_token and .tls.cert_path (or .plain: true, unencrypted)"
    host = server.host
    notes = []
    if host is None:
        host = "*" if safe else "127.0.0.1"
        if not safe:
            notes.append(f"agents can connect from this host only; to open it to others, {remedy}")
    elif not safe and not server.plain and not _is_loopback(host):
        raise BadRequest(f"agents of other hosts may not connect to {host} like that: {remedy}")
    if not _is_loopback(host):
        if cert is None:
            notes.append(f"agents connect to {host} without TLS: whoever listens in reads token and output")
        if not server.access_token:
            notes.append("no access token is set: whoever reaches the agents' port is taken for an agent")
    return [Port(host, server.port, server.access_token, cert, key)], notes


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def tls(port: Port) -> ssl.SSLContext | None:
    if port.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password fails where OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(port.cert, port.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(f"can't use the certificate {port.cert} with key {port.key}: {error}") from error
    return context
