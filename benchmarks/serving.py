"""A server and its clients, as the benchmarks use them: processes of their own, on loopback."""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from server import Server  # noqa: E402

JOBS = {
    "nothing": "program: {type: no-op}\n",
    "old": "params: [n]\nprogram: {type: no-op}\n",
    "echo": "params: [n]\nprogram: {type: procstar, argv: [/bin/echo, 'number {{ n }}']}\n",
}


@contextmanager
def serving(prepare: Any = None, config: str = "") -> Iterator[Server]:
    """A server with JOBS and a local agent; `prepare(path of the database)` is called before it starts."""
    with tempfile.TemporaryDirectory(prefix="apsis-bench-", dir="/var/tmp") as directory:
        server = Server(Path(directory), JOBS, config)
        if prepare is not None:
            prepare(Path(directory) / "apsis.db")
        with server.running():
            yield server


class Client:
    """One connection, kept alive."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if data else {}
        self._connection.request(method, f"/api/v1{path}", data, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text[:500]
        return json.loads(text)

    def close(self) -> None:
        self._connection.close()


def milliseconds(seconds: Sequence[float]) -> str:
    """p50, p99 and the largest."""
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000 for part in (0.5, 0.99)]
    return f"p50 {at[0]:7.1f} ms  p99 {at[1]:7.1f} ms  max {ordered[-1] * 1000:7.1f} ms"
