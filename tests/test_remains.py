"""What a killed program leaves behind is its own, whoever else runs programs on the same host."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server import ENDS, Server

from programs import remains

MINE, OTHER = "r1.6b5c9d6e-5a64-4f19-8c3e-3a1d0e7f0001", "r1.6b5c9d6e-5a64-4f19-8c3e-3a1d0e7f0002"
# It leaves a process in a session of its own, which prints its number, and would itself go on.
LEAVES = """program:
  type: procstar-shell
  command: "setsid sh -c 'echo $$; exec sleep 600' & sleep 600"
"""


@pytest.fixture
def sweep() -> Iterator[Callable[..., list[str]]]:
    """Runs the script as an agent does, beside processes with these environments: what it says of each."""
    with ExitStack() as stack:

        def swept(*environments: dict[str, str]) -> list[str]:
            sleepers = [
                stack.enter_context(
                    subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], **env})
                )
                for env in environments
            ]
            for sleeper in sleepers:
                stack.callback(sleeper.kill)
            with subprocess.Popen("true", start_new_session=True) as ended:
                pass
            argv = ["/bin/sh", "-c", remains.SWEEP, "sh", str(ended.pid), MINE, "r1", str(remains.SLACK)]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
            said = {int(line.split()[1]): line.split()[0] for line in done.stdout.splitlines()}
            return [said.get(sleeper.pid, "") for sleeper in sleepers]

        yield swept


def test_a_process_is_known_by_the_id_that_no_other_has(sweep: Callable[..., list[str]]) -> None:
    assert sweep(
        {"APSIS_RUN_ID": "r1", "APSIS_PROC_ID": MINE},
        {"APSIS_PROC_ID": MINE, "NOTE": "two\nlines"},
        {"APSIS_RUN_ID": "r1", "APSIS_PROC_ID": OTHER},  # of another Apsis
        {"APSIS_RUN_ID": "r1", "NOTE": "two\nlines", "APSIS_PROC_ID": OTHER},
        {"APSIS_RUN_ID": "r1"},  # of this or another, from before an upgrade
        {"APSIS_RUN_ID": "r12"},
        {},
    ) == ["left", "left", "", "", "like", "", ""]


def test_what_has_the_run_id_alone_is_told_of_only_where_it_may_be_the_runs() -> None:
    class Ends:
        """An agent at which the script says this at once."""

        def watch(self, proc_id: str, conn_id: str, watcher: object, message: object) -> bool:
            text = "left 7 sleep\nlike 8 my sleep\n"
            res = {"state": "terminated", "status": {"exit_code": 0}, "fds": {"stdout": {"text": text}}}
            watcher.result(res)  # type: ignore[attr-defined]
            return True

        def forget(self, proc_id: str, conn_id: str) -> None: ...

    def told(marked: bool) -> list[str]:
        said: list[str] = []
        remains.sweep(Ends(), "a1", (6, MINE, "r1"), 1.0, marked, said.append)  # type: ignore[arg-type]
        return said

    surely = "a process of the run has outlived it: pid 7 (sleep)"
    perhaps = "a process of the run, or of a run r1 of another Apsis, has outlived it: pid 8 (my sleep)"
    assert told(marked=True) == [surely]
    assert told(marked=False) == [surely, perhaps]


def test_two_servers_on_one_host_whose_runs_have_the_same_ids(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers, daemons = [], []
        for name in ("one", "other"):
            server = Server(tmp_path / name, {"leaves": LEAVES})
            servers.append(stack.enter_context(server.running()))
            assert server.schedule({"job_id": "leaves"}) == "r1"
        end = time.monotonic() + 60
        for server in servers:
            while not (printed := server.output("r1")).endswith(b"\n"):
                assert time.monotonic() < end, server.messages("r1")
                time.sleep(0.05)
            daemons.append(int(printed))
            stack.callback(os.kill, daemons[-1], signal.SIGKILL)
        for server, own in zip(servers, daemons, strict=True):
            server.post("/runs/r1/stop")
            assert server.until("r1", *ENDS)["state"] == "failure"
            while not any("outlived" in message for message in server.messages("r1")):
                assert time.monotonic() < end, server.messages("r1")
                time.sleep(0.05)
            assert [text for text in server.messages("r1") if "outlived" in text] == [
                f"a process of the run has outlived it: pid {own} (sleep)"
            ]
