"""A server for agents that is not ours: `procstar.agent.server` of the package procstar, told what to do.

Runs as a process of its own, since the package needs an older websockets than our tests do:
`python reference_server.py PORT`. Reads a command in JSON from each line of its input, and prints the
answer, one line each, as JSON; the first line is an answer too, once it listens.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import procstar.lib.py

# The package is of the time before Python 3.11, which refuses defaults that cannot be hashed.
procstar.lib.py.Interval.__hash__ = lambda self: hash((self.start, self.stop))

from procstar.agent.proc import FdData, Result  # noqa: E402
from procstar.agent.server import Server  # noqa: E402
from procstar.lib.py import Interval  # noqa: E402

server = Server()


def plain(value: Any) -> Any:
    """A result without the record of its connection, which the package adds."""
    return {key: item for key, item in vars(value).items() if key != "procstar"}


async def update(proc_id: str, wanted: type) -> Any:
    while True:
        found = await anext(server.processes[proc_id].updates)
        if isinstance(found, wanted):
            return found


async def start(proc_id: str, spec: dict[str, Any], timeout: float = 30) -> Any:
    _, result = await server.start(proc_id, spec, conn_timeout=timeout)
    return plain(result)


async def final(proc_id: str) -> Any:
    while True:
        result = await update(proc_id, Result)
        if result.state != "running" and result.status is not None:
            return plain(result)


async def result(proc_id: str) -> Any:
    await server.processes[proc_id].request_result()
    return plain(await update(proc_id, Result))


async def data(proc_id: str, fd: str = "stdout", start: int = 0, stop: int | None = None) -> Any:
    await server.processes[proc_id].request_fd_data(fd, interval=Interval(start, stop))
    found = await update(proc_id, FdData)
    return {
        "fd": found.fd,
        "start": found.interval.start,
        "stop": found.interval.stop,
        "encoding": found.encoding,
        "data": base64.b64encode(found.data).decode(),
    }


async def send_signal(proc_id: str, signum: int) -> None:
    await server.processes[proc_id].send_signal(signum)


async def delete(proc_id: str) -> list[str]:
    await server.processes[proc_id].delete()
    return list(server.processes)


async def request_delete(proc_id: str) -> None:
    await server.processes[proc_id].request_delete()


async def reconnect(conn_id: str, proc_id: str) -> None:
    await server.reconnect(conn_id, proc_id, conn_timeout=60)


async def connections(count: int = 1, **wanted: Any) -> Any:
    """The records, once there are so many, each with what is wanted of its statistics or its state."""
    with server.connections.subscription() as changes:
        while True:
            found = {conn_id: conn.to_jso() for conn_id, conn in server.connections.items()}
            facts = [{**conn, **conn["info"]["stats"]} for conn in found.values()]
            if len(found) == count and all(fact[key] == wanted[key] for fact in facts for key in wanted):
                return found
            await anext(changes)


async def cut(conn_id: str) -> None:
    """End the TCP connection without a farewell of WebSocket or TLS."""
    server.connections[conn_id].ws.transport.abort()


async def main() -> None:
    await server.run(host="127.0.0.1", port=int(sys.argv[1]))
    print(json.dumps("listening"), flush=True)
    while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        name, fields = json.loads(line)
        try:
            answer: Any = await asyncio.wait_for(globals()[name](**fields), 60)
        except Exception as error:
            answer = {"raised": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
