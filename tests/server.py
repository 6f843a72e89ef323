"""`apsis serve`, a process of its own on loopback, with an agent of its own: the whole installation.

installation.py has the same parts, but for agents, in the test's process, which is faster.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import connect

ROOT = Path(__file__).parent.parent
# What the end-to-end tests start: the checkout, or the file that APSIS_TEST_PROGRAM names (make test-dist).
PROGRAM = os.environ.get("APSIS_TEST_PROGRAM") or str(ROOT / "apsis.py")
ENDS = ("success", "failure", "error", "skipped")
# What the tester's own environment may say to commands.
_OURS = ("APSIS_HOST", "NO_COLOR", "COLUMNS", "LINES", "TERM", "TZ", "PYTHONPATH")
_CONFIG = "job_dir: jobs\ndatabase: {path: apsis.db}\nprocstar: {agent: {local: true}}\n"


class Client:
    """Asks the server at `url`."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        answer = requests.get(self.url + path, params=query, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, **query: str) -> Any:
        answer = requests.post(self.url + path, json=body, params=query, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def schedule(self, body: Mapping[str, Any]) -> str:
        """The run ID of a new run."""
        return str(next(iter(self.post("/runs", body)["runs"])))

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/runs/{run_id}")["runs"][run_id]
        return found

    def until(self, run_id: str, *states: str) -> dict[str, Any]:
        """The run, once it is in one of `states`."""
        end = time.monotonic() + 60
        with connect(f"ws{self.url[4:]}/runs/{run_id}/updates?init", max_size=None) as stream:
            while True:
                parts = json.loads(stream.recv(max(0.01, end - time.monotonic())))
                if "run" in parts and parts["run"]["state"] in states:
                    return self.run(run_id)

    def output(self, run_id: str) -> bytes:
        return requests.get(f"{self.url}/runs/{run_id}/output/output", timeout=30).content

    def until_printed(self, run_id: str, text: bytes) -> None:
        """Returns once the output of a run that goes on is `text`."""
        end = time.monotonic() + 60
        found = b""
        with connect(
            f"ws{self.url[4:]}/runs/{run_id}/output/output/updates?start=0", max_size=None
        ) as stream:
            while found != text:
                message = stream.recv(max(0.01, end - time.monotonic()))
                assert isinstance(message, bytes)
                found += message.partition(b"\r\n\r\n")[2]

    def messages(self, run_id: str) -> list[str]:
        return [entry["message"] for entry in self.get(f"/runs/{run_id}/log")["run_log"]]


class Server(Client):
    """A server in `directory`, whose apsis.yaml and jobs are written unless they are there."""

    program: Sequence[str] = (sys.executable, PROGRAM)

    def __init__(
        self,
        directory: Path,
        jobs: Mapping[str, str] | None = None,
        config: str = "",
        program: Sequence[str] | None = None,
    ) -> None:
        self.directory = directory
        if program is not None:
            self.program = program
        self.jobs = directory / "jobs"
        self.process: subprocess.Popen[bytes] | None = None
        self.jobs.mkdir(parents=True, exist_ok=True)
        if "runs:" not in config:
            config += "runs: {retention: off}\n"  # or there would be a job that tests have not asked for
        if not (directory / "apsis.yaml").exists():
            (directory / "apsis.yaml").write_text(_CONFIG + config)
        for job_id, text in (jobs or {}).items():
            self.write(job_id, text)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/api/v1"

    def write(self, job_id: str, text: str) -> None:
        path = self.jobs / f"{job_id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # -- life --------------------------------------------------------------------------------------

    def start(self, *options: str) -> None:
        """Returns once the server runs jobs. `options`: more of serve's."""
        argv = [*self.program, "serve", "--config", str(self.directory / "apsis.yaml")]
        with open(self.directory / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--port", str(self.port), *options], stderr=log, stdout=log, stdin=subprocess.DEVNULL
            )
        self.await_running()

    def await_running(self) -> None:
        assert self.process is not None
        end = time.monotonic() + 60
        while True:
            try:
                requests.get(f"{self.url}/running", timeout=30).raise_for_status()
                return
            except requests.ConnectionError:
                assert time.monotonic() < end, self.log()
            try:
                status = self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"serve ended with {status}:\n{self.log()}")

    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the server alone; its exit status. Programs go on."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        assert self.end(signal.SIGKILL) == -signal.SIGKILL

    def end_agent(self) -> None:
        """End the local agent with all of its programs."""
        try:
            pid = json.loads((self.directory / "apsis.db.agent.json").read_text())["pid"]
            agent = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            signal.pidfd_send_signal(agent, signal.SIGQUIT)
            # It would wait for a server to fetch what its programs left; there is none any more.
            end = time.monotonic() + 15
            while children(pid) and time.monotonic() < end and not select.select([agent], [], [], 0.02)[0]:
                pass
            signal.pidfd_send_signal(agent, signal.SIGKILL)
            select.select([agent], [], [], 15)
        except ProcessLookupError:
            pass
        finally:
            os.close(agent)

    @contextmanager
    def running(self, *options: str) -> Iterator[Server]:
        """The server while the block lasts; nothing of it afterwards."""
        try:
            self.start(*options)
            yield self
            assert self.process is not None and self.process.poll() is None, self.log()
            assert self.end() == 0, self.log()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.kill()
            self.end_agent()

    # -- the command line --------------------------------------------------------------------------

    def argv(self, *words: str) -> list[str]:
        return [*self.program, "--port", str(self.port), *words]

    def command(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`apsis WORDS`, in UTC unless `environ` says TZ."""
        return subprocess.run(
            self.argv(*words), capture_output=True, text=True, timeout=120, env=environment(**environ)
        )

    def spawn(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        """`apsis WORDS`, while it goes on."""
        return subprocess.Popen(
            self.argv(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**environ),
        )


def children(pid: int) -> list[str]:
    """Processes that one has started; none, where it is no more."""
    try:
        return [
            number
            for task in Path(f"/proc/{pid}/task").iterdir()
            for number in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def environment(**more: str) -> dict[str, str]:
    """For commands: that of the test without what would change their output."""
    ours = {name: value for name, value in os.environ.items() if name not in _OURS}
    return {**ours, "TZ": "UTC", **more}
