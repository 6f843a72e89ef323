"""A TCP proxy between agents and server that loses connections as networks do.

cut()       both ends are reset: everybody notices at once
hang()      half-open: nothing is forwarded, nothing is closed, and nobody is told; new connections
            hang as well. `way`: "both", or only "up" (agent to server) or "down"
delay(s)    whatever comes is forwarded so many seconds later, and meanwhile nothing else is
heal()      what hung is dropped, as after the change of a route; new connections are forwarded again
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Proxy:
    """Forwards connections to `port` of loopback. One thread; `port` below is where it listens."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._waker = socket.socketpair()
        self._lock = threading.Lock()  # protects all below
        self._peers: dict[socket.socket, socket.socket] = {}  # both ways
        self._ups: set[socket.socket] = set()  # the agents' ends
        self._hung = ""
        self._ending = False
        self._delay = 0.0  # seconds; read without the lock
        self._thread = threading.Thread(target=self._forward, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        with self._lock:
            self._drop_locked()
        self._poke()

    def hang(self, way: str = "both") -> None:
        with self._lock:
            self._hung = way
        self._poke()

    def delay(self, seconds: float) -> None:
        self._delay = seconds

    def heal(self) -> None:
        with self._lock:
            if self._hung:
                self._drop_locked()
            self._hung = ""
        self._poke()

    def close(self) -> None:
        with self._lock:
            self._ending = True
        self._poke()
        self._thread.join(5)
        with self._lock:
            self._drop_locked()
        self._listener.close()

    def _poke(self) -> None:
        self._waker.send(b"x")

    def _drop_locked(self) -> None:
        for end in self._peers:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()
        self._peers.clear()
        self._ups.clear()

    def _forward(self) -> None:
        while True:
            with self._lock:
                if self._ending:
                    return
                down_hung, up_hung = self._hung in ("both", "down"), self._hung in ("both", "up")
                reading = [end for end in self._peers if not (up_hung if end in self._ups else down_hung)]
            try:
                ready = select.select([self._listener, self._wake, *reading], [], [])[0]
            except (OSError, ValueError):  # one was closed meanwhile
                continue
            for end in ready:
                if end is self._wake:
                    self._wake.recv(4096)
                elif end is self._listener:
                    self._accept()
                else:
                    self._pass_on(end)

    def _accept(self) -> None:
        up, _ = self._listener.accept()
        try:
            down = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:  # the server is not there
            up.close()
            return
        for end in (up, down):
            end.setblocking(True)
            end.settimeout(30)  # of a peer that does not read: as good as gone
        with self._lock:
            self._peers[up], self._peers[down] = down, up
            self._ups.add(up)

    def _pass_on(self, end: socket.socket) -> None:
        with self._lock:
            peer = self._peers.get(end)
        if peer is None:
            return
        try:
            data = end.recv(65536)
            if data:
                if self._delay:
                    time.sleep(self._delay)
                peer.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            for one in (end, peer):
                self._peers.pop(one, None)
                self._ups.discard(one)
                one.close()
