"""The agent: runs programs for a server, keeps their output on disk, and outlives the server.

Read in this order:

    spec.py        what a server may ask to be started, and every way in which it may be wrong
    captures.py    the output of one descriptor: an unlinked file, read without moving its offset
    children.py    fork and exec; the one place where code runs in the child
    cgroups.py     limits and accounting, where the kernel lets us
    results.py     what is told about a program: times, status, rusage, /proc
    procs.py       the records: one a program, from its start until the server deletes it
    loop.py        the one thread: descriptors, timers, signals
    shutdown.py    active, idling, done
    requests.py    a message in, messages out
    service.py     the connection: register, answer, keep alive, reconnect
    serve.py       the same records over local HTTP
    options.py     the command line
    program.py     puts the above together

Everything happens in one thread and nothing is polled: an idle agent wakes for its keepalive only.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run an agent with these arguments (default: the command line's); the exit status."""
    # Imported here, so that `apsis --help` does not pay for TLS and msgpack.
    from apsislib.agent.program import main as run

    return run(argv)
