"""Starts the server in this process: `python launch.py OPTIONS serve ...`, OPTIONS being JSON:

ping, silence   seconds, instead of those of agent_server.py, which are for real networks
slow_commit     seconds by which each commit is slower, to widen the windows that a kill may hit
die             [kind, mode, n]: SIGKILL before or after (mode) the n-th commit, send or receive (kind)
plant           the name of a defect to plant (plants.py)
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import agent_server  # noqa: E402
import apsis  # noqa: E402
from apsislib import links  # noqa: E402
from apsislib.store import store  # noqa: E402


def die(kind: str, mode: str, n: int) -> None:
    """Kill this process at the n-th call of what does such things."""
    owner, name = {
        "commit": (store, "write"),
        "send": (links.Connection, "send"),
        "receive": (links.Link, "_feed"),
    }[kind]
    call = getattr(owner, name)
    counter = itertools.count(1)

    def mortal(*args: Any, **options: Any) -> Any:
        last = next(counter) == n
        if last and mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = call(*args, **options)
        if last:
            if kind == "send":
                args[0].poll(0, want_read=False)  # it leaves
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, mortal)


def main() -> int:
    options = json.loads(sys.argv[1])
    defaults: dict[str, Any] = agent_server.AgentServer.__init__.__kwdefaults__
    defaults |= {"ping": options.get("ping", 1.0), "silence": options.get("silence", 4.0)}
    if delay := options.get("slow_commit"):
        write = store.write

        def slowly(*args: Any) -> Any:
            threading.Event().wait(delay)  # libfaketime breaks time.sleep
            return write(*args)

        store.write = slowly
    if options.get("die"):
        die(*options["die"])
    if name := options.get("plant"):
        from chaos import plants

        plants.PLANTS[name]()
    sys.argv[1:2] = []
    return apsis.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
