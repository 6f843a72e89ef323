"""The WebSocket seam: the only importer of wsproto and websocket_server.

Connection is one WebSocket, driven by the one thread that owns it. There are three ways to one: Listener
(server side, a port and a thread per connection), connect (client side), upgrade (server side, on a
socket that an HTTP server has read the request from). Both ends of TLS are used from one thread, as
OpenSSL demands.
"""

from apsislib.sockets.connection import MAX_PENDING, Connection
from apsislib.sockets.events import (
    ABNORMAL,
    FAILED,
    GOING_AWAY,
    NORMAL,
    POLICY,
    TOO_BIG,
    UNSUPPORTED,
    Closed,
    Data,
    Event,
    Full,
    Pong,
    Text,
)
from apsislib.sockets.handshake import HANDSHAKE_TIMEOUT, Refused, connect, upgrade
from apsislib.sockets.listener import MAX_CONNECTIONS, Listener
from apsislib.sockets.outbox import MAX_FRAME, Outgoing
from apsislib.sockets.strangers import Strangers

__all__ = [
    "ABNORMAL",
    "FAILED",
    "GOING_AWAY",
    "HANDSHAKE_TIMEOUT",
    "MAX_CONNECTIONS",
    "MAX_FRAME",
    "MAX_PENDING",
    "NORMAL",
    "POLICY",
    "TOO_BIG",
    "UNSUPPORTED",
    "Closed",
    "Connection",
    "Data",
    "Event",
    "Full",
    "Listener",
    "Outgoing",
    "Pong",
    "Refused",
    "Strangers",
    "Text",
    "connect",
    "upgrade",
]
