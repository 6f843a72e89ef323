"""A server in the test's own process: the real store, kernel, driver, API and live streams, and no agents."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import contract
import requests

from apsislib import jobs, samples
from apsislib.api import Parts, Server
from apsislib.calendars import Calendars
from apsislib.clock import Deadline, WallClock
from apsislib.driver import Driver
from apsislib.driver import Parts as DriverParts
from apsislib.errors import FieldError
from apsislib.feeds import Feed
from apsislib.jobs import JobSet, Kinds
from apsislib.live import Live
from apsislib.runs import Expect, Run, Save
from apsislib.samples import Samples
from apsislib.scheduler import Settings
from apsislib.states import State
from apsislib.store import Store
from programs import noop
from programs.base import Settings as ProgramSettings

# A connection of an agent, as the agent server shows it.
AGENT = {
    "shutdown_state": "active",
    "info": {
        "conn": {"conn_id": "c1", "group_id": "default", "restricted_exe": None},
        "socket": {"address": "10.1.2.3", "port": 40112},
        "proc": {
            **dict.fromkeys(("pid", "ppid", "uid", "euid", "gid", "egid"), 811),
            **dict.fromkeys(("username", "groupname", "hostname"), "w3"),
        },
        "stats": {
            "connected": True,
            "first_connect_time": "2031-05-06T07:00:00.123456+00:00",
            "last_connect_time": "2031-05-06T07:00:00.123456+00:00",
            "last_disconnect_time": None,
            **dict.fromkeys(("num_connections", "num_received", "num_sent"), 1),
        },
    },
}
PROGRAM = "program: {type: no-op}\n"
SLOW = "program: {type: no-op, duration: 600}\n"


def every(interval: int) -> str:
    """A schedule with a run each `interval` s, the next half of one from now: none begins amid a test."""
    phase = int(WallClock().wall() + interval / 2) % interval
    return f"schedule: {{type: interval, interval: {interval}, phase: {phase}}}\n"


def parse_program(mapping: Mapping[str, Any]) -> noop.NoOp:
    if mapping["type"] != "no-op":
        raise FieldError(f"unknown program type: {mapping['type']}", ["type"])
    return noop.parse(mapping, ProgramSettings())


class Host:
    """What no-ops need of a server."""

    agents = None

    def __init__(self, driver: Driver) -> None:
        self.clock = driver.clock
        self.report = driver.report
        self.run = driver.live_run
        self.spawn = driver.spawn


def _passing(run: Run) -> bool:
    """Whether its state is about to change by itself."""
    if run.state is State.RUNNING:
        return not (run.program or {}).get("duration")
    return run.state in (State.SCHEDULED, State.STARTING)


class Installation:
    def __init__(
        self,
        directory: Path,
        files: Mapping[str, str],
        connections: Callable[[], Mapping[str, Any]] | None = None,
        live: Mapping[str, Any] | None = None,
        port: int = 0,
        **server: Any,
    ) -> None:
        self.stopped = False
        self.clock = WallClock()
        self.job_dir = directory / "jobs"
        self.job_dir.mkdir()
        for job_id, text in files.items():
            self.write(job_id, text)
        self.ends: SimpleQueue[bool] = SimpleQueue()  # what the shut-down command asked for
        self.store = Store(directory / "apsis.db", self.clock)
        self.feed = Feed()
        self.kinds = Kinds(parse_program)
        self.deaths: list[str] = []
        calendars = Calendars()
        self.store.open()
        self.driver = Driver(
            Settings(horizon=3600.0),
            self.load(),
            self.store,
            self.feed,
            self.clock,
            DriverParts(
                load_program=lambda json: noop.load(json, ProgramSettings()),
                parse_ad_hoc=lambda mapping, job_id: jobs.parse_job(mapping, job_id, self.kinds, ad_hoc=True),
                load_jobs=self.load,
                get_calendar=calendars.get,
                host=Host,
                die=self.deaths.append,
            ),
        )
        self.store.committed = self.driver.committed
        self.store.unwritable = self.driver.unwritable
        self.store.failing = self.driver.failing
        self.store.start()
        self.live = Live(
            self.driver,
            self.store,
            self.feed,
            self.clock,
            connections=connections,
            **{"batch": 0.01, **(live or {})},
        )
        self.samples = Samples(self.clock, self._sample)  # a test takes them by hand
        parts = Parts(
            self.driver,
            self.store,
            self.clock,
            connections=connections,
            shut_down=self.ends.put,
            version="9.8.7",
            series=self.samples.series,
            config=lambda: {"job_dir": "jobs", "runs": {"retention": 86400.0}},
        )
        self.server = Server(parts, port=port, take_socket=self.live.take, **server)
        self.http = requests.Session()
        # Whatever a test asks for, the answer must be one that openapi.json allows.
        self.http.hooks["response"].append(lambda answer, **_: contract.check(answer))

    def _sample(self) -> dict[str, float]:
        figures = dict.fromkeys(samples.FIGURES, 0.0)
        return figures | {"ended": float(self.driver.tally.totals()[0]), "memory": 1e8, "lateness": 0.004}

    def load(self) -> JobSet:
        return jobs.load_dir(self.job_dir, self.kinds)

    def write(self, job_id: str, text: str) -> None:
        path = self.job_dir / f"{job_id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(self) -> Installation:
        with self.feed.subscribe() as events:
            self.driver.recover()
            self.driver.start()
            self.server.start()
            assert self.driver.is_running.wait(60)
            if any(job.schedules for job in self.driver.jobs.jobs.values()):
                while not any(isinstance(event, Expect) for event in events.get(60)):
                    pass
        return self

    def stop(self) -> None:
        if self.stopped:
            return
        self.stopped = True
        self.http.close()
        left = self.server.stop(Deadline(60))
        left += self.live.stop(Deadline(60))
        left += self.driver.stop(Deadline(60))
        assert self.store.close(Deadline(60))
        assert left == []
        assert self.deaths == []

    close = stop

    @property
    def port(self) -> int:
        return self.server.address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1"

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.http.get(self.url + path, timeout=60, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> requests.Response:
        return self.http.post(self.url + path, json=json, timeout=30, **options)

    def make(self, job_id: str | None = None, **body: Any) -> dict[str, Any]:
        """A new run, as the API answers it; if it starts at once, then as it is after that.

        One that ends at once has ended, however slow the machine is: the API waits for it for a while only.
        """
        with self.feed.subscribe() as events:
            answer = self.post("/api/v1/runs", body | ({"job_id": job_id} if job_id else {}))
            assert answer.status_code == 200, answer.text
            (run,) = answer.json()["runs"].values()
            run_id: str = run["run_id"]
            if run["state"] not in ("starting", "running"):
                return run
            passing = True
            while passing:
                told = events.get(60)
                assert told
                for event in told:
                    if isinstance(event, Save) and event.run.run_id == run_id:
                        passing = _passing(event.run)
        return self.get(f"/api/v1/runs/{run_id}").json()["runs"][run_id]

    def state(self, run_id: str) -> str:
        return self.get(f"/api/v1/runs/{run_id}/state").json()["state"]

    def print(self, run_id: str, pieces: Iterable[bytes], at: int = 0, **options: Any) -> None:
        """Output of a run, on disk when this returns."""
        done = threading.Event()
        subscription = self.feed.subscribe(run_id, wake=done.set)
        for piece in pieces:
            self.store.put_output(run_id, "output", at, piece, **options)
            at += len(piece)
        while not any(getattr(event, "length", None) == at for event in subscription.get(60)):
            pass
        subscription.close()

    def raw(self, data: bytes, end: bool = True, timeout: float = 10) -> bytes:
        """Everything that the server answers to these bytes until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer
