"""Networks between a server and agents, that a test cuts and heals: what is sent is lost, nobody is told.

`Namespaces` gives each agent a network namespace, with a pair of virtual interfaces to the server's;
the caller must itself be in one of its own, as root of it. `Proxies` need no rights: all that an agent
sends and receives goes through one, which holds back while the network is cut.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from pathlib import Path
from typing import Protocol


class Network(Protocol):
    host: str  # where the server is to listen

    def add(self, name: str, port: int) -> tuple[list[str], str, int]:
        """For an agent of this name: what goes before its command, and where it finds the server's port."""

    def cut(self, name: str) -> None: ...
    def heal(self, name: str) -> None: ...
    def close(self) -> None: ...


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Namespaces:
    host = "*"

    def __init__(self) -> None:
        self._names: list[str] = []
        # `ip netns` keeps its namespaces there; nothing of ours outlives the one that we are in.
        Path("/run/netns").mkdir(exist_ok=True)
        ip("link", "set", "lo", "up")

    def add(self, name: str, port: int) -> tuple[list[str], str, int]:
        self._names.append(name)
        here, there = f"10.99.{len(self._names)}.1", f"10.99.{len(self._names)}.2"
        ip("netns", "add", name)
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "wire", "netns", name)
        ip("addr", "add", f"{here}/24", "dev", f"to-{name}")
        ip("link", "set", f"to-{name}", "up")
        ip("-n", name, "addr", "add", f"{there}/24", "dev", "wire")
        ip("-n", name, "link", "set", "lo", "up")
        self.heal(name)
        return ["ip", "netns", "exec", name], here, port

    def cut(self, name: str) -> None:
        ip("-n", name, "link", "set", "wire", "down")

    def heal(self, name: str) -> None:
        ip("-n", name, "link", "set", "wire", "up")

    def close(self) -> None:
        for name in self._names:
            ip("link", "del", f"to-{name}")
            ip("netns", "del", name)


class Proxies:
    host = "127.0.0.1"

    def __init__(self) -> None:
        self._proxies: dict[str, Proxy] = {}

    def add(self, name: str, port: int) -> tuple[list[str], str, int]:
        self._proxies[name] = Proxy(("127.0.0.1", port))
        return [], "127.0.0.1", self._proxies[name].port

    def cut(self, name: str) -> None:
        self._proxies[name].whole.clear()

    def heal(self, name: str) -> None:
        self._proxies[name].whole.set()

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class Proxy:
    """Passes TCP on, both ways, while `whole` is set."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.whole = threading.Event()
        self.whole.set()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closed = False
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        for end in (self._listener, *self._pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.whole.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                near = self._listener.accept()[0]
                self._pairs.append(near)
                threading.Thread(target=self._pass, args=(near,), name="proxy", daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.whole.wait()
            far = socket.create_connection(self._target)
            self._pairs.append(far)
            other = {near: far, far: near}
            while other:
                for end in select.select(list(other), [], [])[0]:
                    data = end.recv(65536)
                    # The end of a connection is held back too: nobody is told.
                    self.whole.wait()
                    if data:
                        other[end].sendall(data)
                    else:
                        other[end].shutdown(socket.SHUT_WR)
                        other.pop(end)
