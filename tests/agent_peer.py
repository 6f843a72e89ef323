"""A server for agents, made of other people's WebSocket and MessagePack, and the agent's process."""

from __future__ import annotations

import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

ROOT = Path(__file__).parent.parent
TIMEOUT = 60.0  # seconds; only a failure takes so long
STDOUT = ["stdout", {"capture": {"mode": "tempfile", "encoding": None, "attached": False}}]
STDERR = ["stderr", {"dup": {"fd": 1}}]


class Link:
    """One registered connection of an agent, seen from the server."""

    def __init__(self, ws: ServerConnection, register: dict[str, Any]) -> None:
        self.register = register
        self.last = b""  # the newest message, as it came
        self._ws = ws
        self._box: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._passed: list[dict[str, Any]] = []  # received while another message was awaited

    def send(self, kind: str, **fields: Any) -> None:
        self.send_raw(msgpack.packb({"type": kind, **fields}))

    def send_raw(self, data: bytes | str) -> None:
        self._ws.send(data)

    def close(self) -> None:
        self._ws.close()

    def send_and_close(self, *requests: dict[str, Any]) -> None:
        """Requests and a Close in one segment."""
        ws = self._ws
        with ws.protocol_mutex:
            for request in requests:
                ws.protocol.send_binary(msgpack.packb(request))
            ws.protocol.send_close(1000)
            ws.socket.sendall(b"".join(ws.protocol.data_to_send()))

    def pump(self) -> None:
        """(its connection's thread) Take what comes, until the end."""
        try:
            for data in self._ws:
                assert isinstance(data, bytes)
                self.last = data
                self._box.put(msgpack.unpackb(data))
        except ConnectionClosed:
            pass
        self._box.put(None)

    def receive(self) -> dict[str, Any]:
        """The next message, of those that no wait() has passed over too."""
        if self._passed:
            return self._passed.pop(0)
        return self._next()

    def wait(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this type with these fields; others stay for later."""
        for at, message in enumerate(self._passed):
            if _matches(message, kind, fields):
                return self._passed.pop(at)
        while True:
            message = self._next()
            if _matches(message, kind, fields):
                return message
            self._passed.append(message)

    def forget(self) -> None:
        """What was passed over is of no more interest."""
        self._passed.clear()

    def ended(self) -> bool:
        """True once the agent has gone; what it said before stays for later."""
        while True:
            message = self._box.get(timeout=TIMEOUT)
            if message is None:
                self._box.put(None)
                return True
            self._passed.append(message)

    def rest(self) -> list[dict[str, Any]]:
        """Everything until the agent goes."""
        self.ended()
        rest, self._passed = self._passed, []
        return rest

    def _next(self) -> dict[str, Any]:
        message = self._box.get(timeout=TIMEOUT)
        assert message is not None, "the agent has gone"
        return message

    # -- the usual requests

    def start(self, proc_id: str, argv: list[str], fds: list[Any] | None = None, **spec: Any) -> None:
        spec |= {"argv": argv, "fds": [STDOUT, STDERR] if fds is None else fds}
        self.send("ProcStartRequest", specs={proc_id: spec})

    def final(self, proc_id: str) -> dict[str, Any]:
        """The result that says that a program runs no more."""
        while True:
            res: dict[str, Any] = self.wait("ProcResult", proc_id=proc_id)["res"]
            if res["state"] != "running" and res["status"] is not None:
                return res

    def run(self, proc_id: str, argv: list[str], fds: list[Any] | None = None, **spec: Any) -> dict[str, Any]:
        self.start(proc_id, argv, fds, **spec)
        return self.final(proc_id)

    def result(self, proc_id: str) -> dict[str, Any]:
        self.send("ProcResultRequest", proc_id=proc_id)
        res: dict[str, Any] = self.wait("ProcResult", proc_id=proc_id)["res"]
        return res

    def data(
        self, proc_id: str, fd: str = "stdout", start: int = 0, stop: int | None = None
    ) -> dict[str, Any]:
        self.send("ProcFdDataRequest", proc_id=proc_id, fd=fd, start=start, stop=stop)
        return self.wait("ProcFdData", proc_id=proc_id, fd=fd)

    def output(self, proc_id: str, fd: str = "stdout") -> bytes:
        data: bytes = self.data(proc_id, fd)["data"]
        return data

    def error(self) -> str:
        err: str = self.wait("RequestError")["err"]
        return err

    def delete(self, proc_id: str) -> None:
        self.send("ProcDeleteRequest", proc_id=proc_id)
        self.wait("ProcDelete", proc_id=proc_id)


def _matches(message: dict[str, Any], kind: str, fields: dict[str, Any]) -> bool:
    return message["type"] == kind and all(message[name] == value for name, value in fields.items())


class Peer:
    """The server: every agent that registers becomes a Link."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None, token: str = "") -> None:
        self.links: queue.Queue[Link] = queue.Queue()
        self.refused = threading.Semaphore(0)  # released for each agent with a wrong token
        self._token = token
        self._server = serve(
            self._serve, "127.0.0.1", port, ssl=context, max_size=None, compression=None, ping_interval=None
        )
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="peer")
        self._thread.start()
        self._open: set[ServerConnection] = set()

    def _serve(self, ws: ServerConnection) -> None:
        self._open.add(ws)
        try:
            register = msgpack.unpackb(ws.recv(timeout=TIMEOUT))
            if register["access_token"] != self._token:
                self.refused.release()
                return
            ws.send(msgpack.packb({"type": "Registered"}))
            link = Link(ws, register)
            self.links.put(link)
            link.pump()
        except (ConnectionClosed, TimeoutError):
            pass
        finally:
            self._open.discard(ws)

    def link(self) -> Link:
        """The next agent that registers."""
        return self.links.get(timeout=TIMEOUT)

    def close(self) -> None:
        self._server.shutdown()
        for ws in tuple(self._open):
            ws.close()
        self._thread.join(TIMEOUT)


class Agent:
    """An agent's process."""

    def __init__(
        self,
        *args: str,
        plain: bool = True,
        env: dict[str, str] | None = None,
        within: Path | None = None,
        cwd: Path = ROOT,
    ) -> None:
        """`within` is a cgroup to start it in."""
        enter = (
            [] if within is None else ["/bin/sh", "-c", f'echo $$ > {within}/cgroup.procs; exec "$@"', "sh"]
        )
        self.process = subprocess.Popen(
            [
                *enter,
                sys.executable,
                "-m",
                "apsislib.agent",
                "--log-level",
                "info",
                *(["--plain"] if plain else []),
                *args,
            ],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if not name.startswith("PROCSTAR_")}
            | {"PYTHONPATH": str(ROOT)}
            | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @classmethod
    def of(cls, peer: Peer, *args: str, **options: Any) -> Agent:
        host = ["--agent", "--agent-host", "127.0.0.1", "--agent-port", str(peer.port)]
        return cls(*host, *args, **options)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def end(self) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) once it has ended."""
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """At the end of a test, with all that it has started and that heeds SIGKILL."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            # It would give the server five seconds to fetch what its programs have left.
            end = time.monotonic() + TIMEOUT
            while self._has_programs() and time.monotonic() < end:
                time.sleep(0.01)
            self.process.kill()
        self.process.communicate()

    def _has_programs(self) -> bool:
        try:
            pid = self.process.pid
            return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        except OSError:
            return False
