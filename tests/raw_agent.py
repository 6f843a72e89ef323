"""An agent made of other people's WebSocket and MessagePack, which says what the test tells it to."""

from __future__ import annotations

import ssl
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TIMEOUT = 60.0  # seconds; only a failure takes so long

PROC = {
    "pid": 4120,
    "ppid": 1,
    "uid": 1001,
    "euid": 1001,
    "username": "runner",
    "gid": 1001,
    "egid": 1001,
    "groupname": "runner",
    "hostname": "node7",
}


class RawAgent:
    def __init__(
        self,
        address: tuple[str, int],
        conn_id: str = "A",
        context: ssl.SSLContext | None = None,
        **fields: Any,
    ) -> None:
        """Connects; registers unless `register=False`. Other fields replace those of Register."""
        scheme = "wss" if context else "ws"
        self.conn_id = conn_id
        opening = connect(
            f"{scheme}://{address[0] if address[0] != '127.0.0.1' else 'localhost'}:{address[1]}/",
            sock=None,
            ssl=context,
            compression=None,
            max_size=None,
            ping_interval=None,
            open_timeout=TIMEOUT,
            proxy=None,
        )
        self.ws = opening.__enter__()
        if fields.pop("register", True):
            self.register(**fields)
            assert self.receive() == {"type": "Registered"}

    def register(self, group_id: str = "default", **fields: Any) -> None:
        message = {
            "conn": {"conn_id": self.conn_id, "group_id": group_id, "restricted_exe": None},
            "proc": PROC,
            "proc_ids": [],
            "access_token": "",
            "shutdown_state": "active",
        }
        self.send("Register", **(message | fields))

    def send(self, kind: str, **fields: Any) -> None:
        self.send_raw(msgpack.packb({"type": kind, **fields}))

    def send_raw(self, data: Any) -> None:
        self.ws.send(data)

    def result(self, proc_id: str, res: dict[str, Any]) -> None:
        self.send("ProcResult", proc_id=proc_id, res=res)

    def data(self, proc_id: str, start: int, data: bytes) -> None:
        stop = start + len(data)
        self.send(
            "ProcFdData", proc_id=proc_id, fd="stdout", start=start, stop=stop, encoding=None, data=data
        )

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = msgpack.unpackb(self.ws.recv(timeout=TIMEOUT))
        return message

    def wait(self, kind: str) -> dict[str, Any]:
        """The next message of a type; others are passed over."""
        while True:
            message = self.receive()
            if message["type"] == kind:
                return message

    def closed(self) -> int:
        """The close code, once the server has closed."""
        try:
            while True:
                self.ws.recv(timeout=TIMEOUT)
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else 1006

    def cut(self) -> None:
        """End the socket without a word."""
        self.ws.socket.shutdown(2)

    def close(self) -> None:
        self.ws.close()
