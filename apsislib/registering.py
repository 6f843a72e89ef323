"""What an agent says of itself first, and for what it is refused."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from apsislib import wire
from apsislib.clock import Clock, Deadline
from apsislib.sockets import Closed, Connection, Data
from apsislib.wire import Message, WireError

REGISTER = 60.0  # seconds that a connection may take to send Register
MAX_REGISTER = 4 * 1024 * 1024  # bytes, some 100,000 processes; who has not registered deserves no more
MAX_NAME = 256  # characters of a conn_id, group or proc ID

_PROC = ("pid", "ppid", "uid", "euid", "username", "gid", "egid", "groupname", "hostname")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def await_register(
    connection: Connection, clock: Clock, left: Callable[[str], None]
) -> tuple[Message | None, str | None]:
    """The first message, if it is a sound Register, or what is wrong. Nothing is sent.

    (None, None) where the connection has ended by itself: `left` is told why.
    """
    stream = wire.Stream(MAX_REGISTER)
    deadline = Deadline(REGISTER, clock)
    while not deadline.passed():
        for event in connection.poll(deadline.left()):
            if isinstance(event, Closed):
                left(event.reason)
                return None, None
            if not isinstance(event, Data):
                return None, "its first message is no Register"
            try:
                items = stream.feed(event.data, event.last)
            except WireError as error:
                return None, f"its first message can't be read: {error}"
            if items:
                first = items[0]
                if isinstance(first, dict) and first["type"] == "Register":
                    return first, None
                return None, "its first message is no Register"
    return None, f"it sent no Register within {REGISTER:g} s"


def refusal(register: Message, token: str) -> str | None:
    """Why an agent may not register; None: it may."""
    if not hmac.compare_digest(register["access_token"].encode(), token.encode()):
        return "its access token is wrong"
    for key in ("conn_id", "group_id"):
        name = register["conn"][key]
        if not name or len(name) > MAX_NAME or not name.isprintable():
            return f"its {key} is empty, too long or unprintable"
    if len(register.get("instance") or "") > MAX_NAME:
        return "its instance is too long"
    if any(not proc_id or len(proc_id) > MAX_NAME for proc_id in register["proc_ids"] or ()):
        return "one of its proc IDs is empty or too long"
    return None


def instance(register: Message) -> str:
    """Which process of its conn_id an agent is. That of others is told by its number; but in a container
    each life of the first process has the same one, so that is taken for another unless its conn_id is
    random, as it is by default."""
    if register.get("instance"):
        return str(register["instance"])
    conn_id, proc = register["conn"]["conn_id"], register["proc"]
    if proc["pid"] is None or (proc["pid"] == 1 and not _UUID.fullmatch(conn_id)):
        return str(uuid4())
    return f"{proc['hostname']} {proc['pid']}"


def described(
    register: Message, peer: tuple[str, int], before: Mapping[str, Any] | None, now: str
) -> dict[str, Any]:
    """An agent as API and UI show it. `before`: as it was shown until now; `now`: ISO time."""
    stats = before["stats"] if before else {}
    return {
        "conn": {key: register["conn"][key] for key in ("conn_id", "group_id", "restricted_exe")},
        "socket": {"address": peer[0], "port": peer[1]},
        "proc": {key: register["proc"][key] for key in _PROC},
        "stats": {
            "connected": True,
            "first_connect_time": stats.get("first_connect_time", now),
            "last_connect_time": now,
            "last_disconnect_time": stats.get("last_disconnect_time"),
            "num_connections": stats.get("num_connections", 0) + 1,
            "num_received": stats.get("num_received", 0) + 1,
            "num_sent": stats.get("num_sent", 0) + 1,
        },
    }
