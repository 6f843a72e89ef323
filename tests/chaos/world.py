"""The processes of a campaign: a server, agents, a proxy for each, a clock that can be set, a small disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import requests
from server import Client

from chaos.proxy import Proxy

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIBRARIES = [
    path / "faketime" / "libfaketime.so.1"
    for path in (*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib"), Path("/usr/lib64"))
]
PATIENCE = 90.0  # seconds; only a failure takes so long


class Clock:
    """The server's wall clock. What it is set by lies in a file that its processes read every second."""

    def __init__(self, path: Path) -> None:
        found = [library for library in LIBRARIES if library.exists()]
        assert found, "libfaketime is missing: install Debian's package faketime"
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._path = path
        self.offset = 0
        self.furthest = 0.0  # the latest instant that it has shown
        self.set(0)

    def set(self, offset: int) -> None:
        """It is to show so many seconds more than the machine's clock."""
        self.furthest = max(self.furthest, self.now())
        self.offset = offset
        draft = self._path.with_suffix(".new")
        draft.write_text(f"{offset:+d}s\n")
        draft.rename(self._path)

    def now(self) -> float:
        return time.time() + self.offset


class Disk:
    """The directory of the database: a tmpfs that can be made as small as what is in it.

    Where mounting is refused it is an ordinary directory, and being full is played by RLIMIT_FSIZE.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1g,mode=700", "apsis-chaos", str(path)], capture_output=True
        )
        self.mounted = mounted.returncode == 0

    def fill(self, server: subprocess.Popen[bytes] | None) -> None:
        if self.mounted:
            used = os.statvfs(self.path)
            size = (used.f_blocks - used.f_bfree) * used.f_frsize
            self._resize(str(size))
        elif server is not None:
            self._limit(server, 64 * 1024)

    def free(self, server: subprocess.Popen[bytes] | None) -> None:
        if self.mounted:
            self._resize("1g")
        elif server is not None:
            self._limit(server, resource.RLIM_INFINITY)

    def _resize(self, size: str) -> None:
        # Refused where the server has written since the size was taken: it is not full then, for once.
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], capture_output=True)

    @staticmethod
    def _limit(server: subprocess.Popen[bytes], size: int) -> None:
        with suppress(ProcessLookupError):
            hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True)
            self.mounted = False


class Agent:
    """One agent, whose processes come and go under the same conn_id. `life` counts them."""

    def __init__(self, conn_id: str, target: int, directory: Path, *options: str) -> None:
        self.conn_id = conn_id
        self.proxy = Proxy(target)
        self.life = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory / f"{conn_id}.log"
        self._options = options

    @property
    def name(self) -> str:
        """As its programs write it into the ledger."""
        return f"{self.conn_id}.{self.life}"

    def start(self) -> None:
        self.life += 1
        argv = [sys.executable, "-P", "-m", "apsislib.agent", "--agent", "--plain"]
        argv += ["--agent-host", "127.0.0.1", "--agent-port", str(self.proxy.port)]
        argv += ["--conn-id", self.conn_id, "--connect-interval-start", "0.2"]
        argv += ["--connect-interval-max", "1", "--agent-read-timeout", "6", *self._options]
        argv += ["--idle-exit", "120"]  # should the campaign itself be killed
        env = {**os.environ, "PYTHONPATH": str(ROOT), "CHAOS_AGENT": self.name}
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def signal(self, signum: int) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        """Its programs live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """With all of its programs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.proxy.close()


class World(Client):
    """A whole installation in `directory`. Use it as a context manager: nothing is left behind."""

    def __init__(
        self,
        directory: Path,
        jobs: Mapping[str, str],
        reconnect: float,
        launch: Mapping[str, Any] | None = None,
        agents: int = 2,
        config: str = "",
    ) -> None:
        """`reconnect`: seconds that an agent may be away. `launch`: see launch.py."""
        self.directory = directory
        self.ledger = directory / "ledger"
        self.clock = Clock(directory / "clock")
        self.disk = Disk(directory / "disk")
        self.database = self.disk.path / "apsis.db"
        self.server: subprocess.Popen[bytes] | None = None
        self.launch = dict(launch or {})
        self.took = 0.0  # seconds until it served
        (directory / "jobs").mkdir()
        for job_id, text in jobs.items():
            (directory / "jobs" / f"{job_id}.yaml").write_text(text)
        self.port, agents_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        (directory / "apsis.yaml").write_text(
            f"job_dir: jobs\ndatabase: {{path: {self.database}}}\nruns: {{retention: off}}\n"
            "schedule: {horizon: 60}\n"
            f"http: {{port: {self.port}}}\n"
            "procstar:\n  agent:\n    enable: true\n"
            f"    server: {{host: 127.0.0.1, port: {agents_port}, plain: true}}\n"
            f"    connection: {{reconnect_timeout: {reconnect:g}}}\n"
            "    run: {output_interval: 0.5, update_interval: 10}\n" + config
        )
        self.agents = [Agent(f"a{n + 1}", agents_port, directory) for n in range(agents)]

    def __enter__(self) -> World:
        begun = time.monotonic()
        try:
            self.start_server()
            for agent in self.agents:
                agent.start()
            self.await_serving()
        except BaseException:
            self.end()
            raise
        self.took = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGCONT)
            self.kill_server()
        for agent in self.agents:
            agent.end()
        self.disk.unmount()

    # -- the server --------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Returns at once."""
        argv = [sys.executable, str(HERE / "launch.py"), json.dumps(self.launch), "serve"]
        with open(self.directory / "server.log", "ab") as log:
            self.server = subprocess.Popen(
                [*argv, "--config", str(self.directory / "apsis.yaml")],
                env={**os.environ, **self.clock.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def await_serving(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                requests.get(f"{self.url}/running", timeout=30).raise_for_status()
                return
            except requests.RequestException:
                assert time.monotonic() < end, self.log()
                assert self.server is not None
                assert self.server.poll() is None, self.log()
                time.sleep(0.05)  # a port tells nobody that somebody listens

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def end_server(self) -> None:
        assert self.server is not None
        self.server.terminate()
        assert self.server.wait(PATIENCE) == 0, self.log()

    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    # -- the database, as it is on disk ------------------------------------------------------------

    def connect(self) -> sqlite3.Connection:
        """To read and write, in transactions that are begun by hand."""
        return sqlite3.connect(f"file:{self.database}?mode=rw", uri=True, timeout=30, isolation_level=None)

    def back_up(self, target: Path) -> bool:
        """`apsis backup`; whether it could."""
        argv = [sys.executable, str(ROOT / "apsis.py"), "backup", "-d", str(self.database), str(target)]
        return subprocess.run(argv, capture_output=True).returncode == 0

    def query(self, sql: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute(sql, values).fetchall()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
