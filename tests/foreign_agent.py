"""An agent that is not ours, of any version from 0.4.3 to 0.7.5: as strict, and as fragile.

It runs real programs, over other people's WebSocket and MessagePack. What would crash a real agent, or
spoil the output that it holds, is noted in `damage`; what a real one would drop without an answer is
dropped, and noted in `dropped`. It is one thread, and like the real one picks at random between the next
request and the next piece of news of its own, so that the two have no order between them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import msgpack
from raw_agent import PROC
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

OPENS = ("Default", "Read", "Write", "Create", "Replace", "CreateAppend", "Append", "ReadWrite")
PING = 20.0  # seconds
NAMES = {0: "stdin", 1: "stdout", 2: "stderr"}


class Dropped(Exception):
    """A request that a real agent does not answer."""


class Refused(Exception):
    """One that it answers with RequestError."""


class Connection(ClientConnection):
    """Also takes note of control frames, which a real agent is particular about."""

    agent: ForeignAgent

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame):
            agent = self.agent
            if event.opcode is Opcode.TEXT:
                agent.damage.append("a text message")
            if not agent.registered.is_set() and event.opcode is not Opcode.BINARY:
                agent.damage.append(f"{event.opcode.name} before Registered")
            if event.opcode is Opcode.PONG and not self.pending_pings and agent.version < (0, 4, 4):
                agent.damage.append("a pong for no ping")
            if event.opcode is Opcode.PING:
                with contextlib.suppress(ConnectionClosed):
                    self.pong(event.data)  # a second one: the library has answered already
            if len(event.data) > 16 << 20:
                agent.damage.append("a frame of more than 16 MiB")
        super().process_event(event)


class Proc:
    def __init__(self, spec: dict[str, Any], env: dict[str, str]) -> None:
        self.spec = spec
        self.errors: list[str] = []
        self.begun, self.started = time.monotonic(), datetime.now(UTC)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with its record)
        self.status: int | None = None
        argv = spec["argv"]
        try:
            self.child = subprocess.Popen(
                argv,
                executable=argv[0] if "/" in argv[0] else f"/no/such/{argv[0]}",
                stdin=subprocess.DEVNULL,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                restore_signals=False,
            )
        except OSError as error:
            self.errors.append(f"execve failed: {argv[0]}: {error.strerror} (os error {error.errno})")
            self.child = subprocess.Popen(["/bin/sh", "-c", "exit 63"])

    def length(self) -> int:
        return os.fstat(self.file.fileno()).st_size


class ForeignAgent:
    def __init__(
        self,
        address: tuple[str, int],
        version: tuple[int, int, int],
        group: str,
        context: ssl.SSLContext | None = None,
        token: str = "",
        seed: int = 0,
    ) -> None:
        self.version = version
        self.damage: list[str] = []
        self.dropped: list[dict[str, Any]] = []
        self.registered = threading.Event()
        self.connections = 0
        self._url = f"{'wss' if context else 'ws'}://localhost:{address[1]}/"
        self._context = context
        self._register = {
            "type": "Register",
            "conn": {"conn_id": f"foreign-{group}", "group_id": group, "restricted_exe": None},
            "proc": PROC,
            "proc_ids": [],
            "access_token": token,
            "shutdown_state": "active",
        }
        self._random = random.Random(seed)
        self._procs: dict[str, Proc] = {}
        self._news: deque[dict[str, Any]] = deque()
        self._state = "active"
        self._drain = threading.Event()
        self._end = threading.Event()
        self.done = threading.Event()  # it has left by itself
        self._ws: ClientConnection | None = None
        self._thread = threading.Thread(target=self._run, name="foreign-agent")
        self._thread.start()

    def drain(self) -> None:
        """What SIGUSR1 does."""
        self._drain.set()

    def cut(self) -> None:
        """End the TCP connection without a word; it connects again."""
        self.registered.clear()
        assert self._ws is not None
        self._ws.socket.shutdown(2)

    def close(self) -> None:
        self._end.set()
        self._thread.join(30)
        for proc in self._procs.values():
            proc.child.kill()
            proc.child.wait()

    # -- its thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._end.is_set() and not self.done.is_set():
            try:
                with self._connect() as ws:
                    self._serve(ws)
            except (OSError, ConnectionClosed, InvalidHandshake):
                self._end.wait(0.1)

    def _connect(self) -> ClientConnection:
        def create(*args: Any, **options: Any) -> Connection:
            connection = Connection(*args, **options)
            connection.agent = self
            return connection

        self.registered.clear()
        return connect(
            self._url,
            ssl=self._context,
            create_connection=create,
            compression=None,
            user_agent_header=None,
            max_size=64 << 20,
            ping_interval=None,
            proxy=None,
            # Its two threads use one TLS connection at once, and now and then what one writes stays unsent.
            open_timeout=5,
        )

    def _serve(self, ws: ClientConnection) -> None:
        headers = ws.response.headers
        if headers["Connection"].lower() != "upgrade" or "Sec-WebSocket-Extensions" in headers:
            self.damage.append(f"a handshake that a real agent rejects: {headers}")
        self._ws = ws
        self._news.clear()  # what happened while nobody was there is lost
        self._register["proc_ids"] = sorted(self._procs)
        self._register["shutdown_state"] = self._state
        ws.send(msgpack.packb(self._register))
        first = ws.recv(timeout=60)
        if first != msgpack.packb({"type": "Registered"}):
            self.damage.append(f"not Registered at first: {first!r}")
        self.connections += 1
        self.registered.set()
        next_ping = time.monotonic()
        while not self._end.is_set():
            if self.version >= (0, 4, 4) and time.monotonic() >= next_ping:
                ws.ping(b"")
                next_ping = time.monotonic() + PING
            self._reap()
            if self._drain.is_set() and self._state == "active":
                self._shut_down("idling")
            if self._state == "idling" and not self._procs:
                # Without the ProcDelete of the last record, and without a Close.
                self._shut_down("done")
                while self._news:
                    ws.send(msgpack.packb(self._news.popleft()))
                self.done.set()
                ws.socket.shutdown(2)
                return
            if self._news and self._random.random() < 0.5:
                self._tell(ws, self._news.popleft())
                continue
            try:
                data = ws.recv(timeout=0.005)
            except TimeoutError:
                if self._news:
                    self._tell(ws, self._news.popleft())
                continue
            self._heed(ws, data)

    def _tell(self, ws: ClientConnection, news: dict[str, Any]) -> None:
        if news["type"] == "ProcResult":
            # Made when it is told, not when it happened; skipped if the record has gone meanwhile.
            if news["proc_id"] not in self._procs:
                return
            news["res"] = self._result(news["proc_id"])
        ws.send(msgpack.packb(news))

    def _shut_down(self, state: str) -> None:
        self._state = state
        self._news.append({"type": "ShutDown", "shutdown_state": state})

    def _reap(self) -> None:
        for proc_id, proc in self._procs.items():
            if proc.status is None and (code := proc.child.poll()) is not None:
                proc.status = code
                if code < 0 and (-code == 16 or -code >= 32):
                    self.damage.append(f"a program killed by signal {-code}")
                self._news.append({"type": "ProcResult", "proc_id": proc_id})

    # -- requests ------------------------------------------------------------------------------------

    def _heed(self, ws: ClientConnection, data: Any) -> None:
        message = msgpack.unpackb(data, strict_map_key=False)
        try:
            reply = self._answer(message)
        except (Dropped, KeyError, TypeError) as error:
            self.dropped.append(message | {"why": repr(error)})
            return
        except Refused as error:
            reply = {"type": "RequestError", "msg": message, "err": str(error)}
        if reply is not None:
            ws.send(msgpack.packb(reply))

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        kind = message["type"]
        if kind == "Registered":
            raise Refused("unexpected")
        if kind == "ProcidListRequest":
            return {"type": "ProcidList", "proc_ids": sorted(self._procs)}
        if kind == "ProcStartRequest":
            for spec in message["specs"].values():
                self._check(spec)
            for proc_id in message["specs"]:
                if proc_id in self._procs:
                    raise Refused(f"duplicate proc id: {proc_id}")
            if self._state != "active":
                raise Refused(f"agent shutting down: {self._state}")
            for proc_id, spec in sorted(message["specs"].items()):
                self._start(proc_id, spec)
            return None
        proc_id = text(message["proc_id"])
        if kind == "ProcSignalRequest":
            signum = message["signum"]
            if type(signum) is not int or not -(2**31) <= signum < 2**31:
                raise Dropped("signum")
        if kind == "ProcFdDataRequest":
            integer(message["start"])
            if message.get("stop") is not None:
                integer(message["stop"])
            if message["fd"] not in ("stdin", "stdout", "stderr", "0", "1", "2"):
                raise Refused(f"bad fd: {message['fd']}")
        if proc_id not in self._procs:
            return {"type": "ProcUnknown", "proc_id": proc_id}
        proc = self._procs[proc_id]
        if kind == "ProcResultRequest":
            return {"type": "ProcResult", "proc_id": proc_id, "res": self._result(proc_id)}
        if kind == "ProcSignalRequest":
            if proc.status is not None:
                raise Refused("no process")
            try:
                os.kill(proc.child.pid, message["signum"])
            except OSError as error:
                raise Refused(f"{error.strerror} (os error {error.errno})") from None
            return None
        if kind == "ProcFdDataRequest":
            return self._data(proc_id, proc, message)
        if kind == "ProcDeleteRequest":
            if proc.status is None:
                raise Refused(f"process running: {proc_id}")
            self._procs.pop(proc_id).file.close()
            if self._state != "idling" or self._procs:
                self._news.append({"type": "ProcDelete", "proc_id": proc_id})
            return None
        raise Dropped(kind)

    def _check(self, spec: dict[str, Any]) -> None:
        """Raises Dropped for what a real agent cannot decode."""
        known = {"argv", "exe", "id", "env", "fds"}
        if self.version >= (0, 5, 0):
            known.add("systemd_properties")
        only(spec, known)
        argv = [text(item) for item in spec.get("argv", [])]
        if not argv or any("\0" in item for item in argv) or ")" in argv[0].rpartition("/")[2]:
            self.damage.append(f"argv {argv}")
            raise Dropped("argv")
        env = spec.get("env", {})
        only(env, {"inherit", "vars"})
        inherit = env.get("inherit", True)
        if not isinstance(inherit, bool):
            [text(name) for name in inherit]
        for name, value in env.get("vars", {}).items():
            text(name)
            if value is not None and "\0" in text(value):
                self.damage.append(f"environment {name}")
        if not isinstance(spec.get("fds", []), list):
            raise Dropped("fds")
        for name, kind in spec.get("fds", []):
            text(name)
            if kind in ("inherit", "close", "pipe-write"):
                continue
            ((variant, fields),) = kind.items()
            if variant == "capture":
                only(fields, {"mode", "encoding", "attached"})
                if fields.get("mode", "tempfile") == "memory":
                    self.damage.append("capture in memory, which a wrong range can crash")
            elif variant == "null":
                only(fields, {"flags"})
                if fields.get("flags", "Default") not in OPENS:
                    raise Dropped("flags")
            elif variant == "dup":
                only(fields, {"fd"})
                integer(fields["fd"])
            else:
                raise Dropped(variant)
        properties = spec.get("systemd_properties", {})
        only(properties, {"scope", "slice"})
        for name, value in ((properties.get("slice") or {}) | (properties.get("scope") or {})).items():
            if name.endswith("_accounting"):
                if not isinstance(value, bool | None):
                    raise Dropped(name)
            elif name == "oom_policy":
                if value not in ("continue", "stop", "kill", None):
                    raise Dropped(name)
            elif value is not None and (type(value) is not int or not 0 <= value < 2**64):
                raise Dropped(name)

    def _start(self, proc_id: str, spec: dict[str, Any]) -> None:
        env = spec.get("env", {})
        own = dict(os.environ) if env.get("inherit", True) else {}
        for name, value in env.get("vars", {}).items():
            own.pop(name, None) if value is None else own.update({name: value})
        self._procs[proc_id] = Proc(spec, own)
        self._news.append({"type": "ProcResult", "proc_id": proc_id})

    def _data(self, proc_id: str, proc: Proc, message: dict[str, Any]) -> dict[str, Any]:
        start, stop, length = message["start"], message.get("stop"), proc.length()
        if start > length or start < 0 or (stop is not None and stop > length):
            self.damage.append(f"output [{start}, {stop}) of {length} bytes asked for")
        elif stop is not None and proc.status is None and stop < length:
            self.damage.append(f"output up to {stop} of {length} bytes, while the program goes on")
        data = os.pread(proc.file.fileno(), (length if stop is None else stop) - start, start)
        return {
            "type": "ProcFdData",
            "proc_id": proc_id,
            "fd": message["fd"],
            "start": start,
            "stop": start + len(data) if stop is None else stop,
            "encoding": None,
            "data": data,
        }

    def _result(self, proc_id: str) -> dict[str, Any]:
        proc = self._procs[proc_id]
        now = datetime.now(UTC).isoformat()
        status = None
        if proc.status is not None:
            code = proc.status
            killed = code < 0
            status = {
                "status": -code if killed else code << 8,
                "exit_code": None if killed else code,
                "signum": -code if killed else None,
                "signal": signal.Signals(-code).name if killed else None,
                "core_dump": False,
            }
        res = {
            "state": "error" if proc.errors else "running" if status is None else "terminated",
            "errors": proc.errors,
            "pid": proc.child.pid,
            "proc_stat": None,
            "proc_statm": None,
            "cgroup_accounting": None,
            "times": {
                "start": proc.started.isoformat(),
                "now": now,
                "stop": None if status is None else now,
                "elapsed": time.monotonic() - proc.begun,
            },
            "status": status,
            "rusage": None,
            "fds": {
                "stderr": None,
                "stdout": {"type": "detached", "length": proc.length(), "encoding": "base64"},
            },
        }
        if self.version < (0, 5, 0):
            del res["cgroup_accounting"]
        return res


def only(mapping: Any, keys: set[str]) -> None:
    if not isinstance(mapping, dict) or set(mapping) - keys:
        raise Dropped(f"{mapping!r:.200} has other keys than {sorted(keys)}")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise Dropped(f"no string: {value!r}")
    return value


def integer(value: Any) -> int:
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise Dropped(f"no integer: {value!r}")
    return value
