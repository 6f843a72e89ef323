"""Two agents, one of which is cut off for a while. Run by test_networks.py, in a namespace of its own.

The server and the agents are real ones, with shorter times until silence means loss.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from agent_peer import ROOT
from networks import Namespaces, Network, Proxies
from server import ENDS, Server

PING, SILENCE = 0.3, 1.5  # seconds; 20 and 40 in real life
SERVE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import agent_server, apsis
agent_server.AgentServer.__init__.__kwdefaults__.update(ping={PING}, silence={SILENCE})
sys.exit(apsis.main(sys.argv[1:]))
"""
CONFIG = """
job_dir: jobs
database: {{path: apsis.db}}
runs: {{retention: off}}
procstar:
  agent:
    enable: true
    server: {{host: "{host}", port: 0, plain: true, access_token: s3cret}}
    connection: {{reconnect_timeout: 5 min}}
    run: {{output_interval: 0.1}}
"""
COUNT = """
program:
  type: procstar-shell
  group_id: {group}
  command: for i in `seq 30`; do echo $i; sleep 0.1; done; touch {done}
"""
ALL = b"".join(b"%d\n" % i for i in range(1, 31))


class Place:
    """The server, the agents `a` and `b`, and the network between them."""

    def __init__(self, directory: Path, network: Network) -> None:
        self.network = network
        self.directory = directory
        (directory / "apsis.yaml").write_text(CONFIG.format(host=network.host))
        done = {name: directory / f"{name}.done" for name in "ab"}
        jobs = {f"count-{name}": COUNT.format(group=name, done=path) for name, path in done.items()}
        jobs["later"] = "program: {type: procstar, group_id: a, argv: [/bin/true]}\n"
        self.server = Server(directory, jobs)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        argv = [sys.executable, "-c", SERVE, "serve", "--config", str(self.directory / "apsis.yaml")]
        with open(self.directory / "server.log", "ab") as log:
            self.server.process = subprocess.Popen(
                [*argv, "--port", str(self.server.port)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self.server.await_running()
        (port,) = re.findall(r"agents may connect: address=\S+ port=(\d+)", self.server.log())
        for name in "ab":
            enter, host, reach = self.network.add(name, int(port))
            argv = [
                *enter,
                sys.executable,
                "-m",
                "apsislib.agent",
                "--agent",
                "--plain",
                "--log-level",
                "info",
            ]
            argv += ["--agent-host", host, "--agent-port", str(reach), "--group-id", name, "--conn-id", name]
            argv += ["--agent-read-timeout", str(SILENCE), "--connect-interval-max", "0.5"]
            with open(self.directory / f"{name}.log", "wb") as log:
                self.agents[name] = subprocess.Popen(
                    argv, cwd=ROOT, env={**os.environ, "PROCSTAR_AGENT_TOKEN": "s3cret"}, stderr=log
                )
            self.stats(name, connected=True)

    def stop(self) -> None:
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            agent.wait(30)
        if self.server.process is not None and self.server.process.poll() is None:
            self.server.kill()
        self.network.close()

    def stats(self, name: str, **wanted: Any) -> dict[str, Any]:
        """What the server shows of an agent's connection, once it is so."""
        url = self.server.url.replace("/api/v1", "/api/procstar/connections")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            record = requests.get(url, timeout=30).json().get(name)
            stats: dict[str, Any] = record["info"]["stats"] if record else {}
            if all(stats.get(key) == value for key, value in wanted.items()):
                return stats
            time.sleep(0.02)
        raise AssertionError((name, wanted, stats, self.server.log()))

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def await_file(self, name: str) -> None:
        end = time.monotonic() + 60
        while not (self.directory / f"{name}.done").exists():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    kind = {"namespaces": Namespaces, "proxies": Proxies}[os.environ["APSIS_TEST_NETWORK"]]
    place = Place(tmp_path, kind())
    try:
        place.start()
        yield place
    finally:
        place.stop()


def test_a_network_that_is_cut_and_healed_costs_nothing_and_concerns_nobody_else(place: Place) -> None:
    server, network = place.server, place.network
    cut_off = server.schedule({"job_id": "count-a"})
    other = server.schedule({"job_id": "count-b"})
    for run_id in (cut_off, other):
        while not server.output(run_id).startswith(b"1\n"):
            time.sleep(0.02)

    network.cut("a")
    begin = time.monotonic()
    place.stats("a", connected=False)
    noticed = time.monotonic() - begin
    print(f"a dead agent was noticed after {noticed:.2f} s; pings each {PING:g} s, silence {SILENCE:g} s")
    assert noticed < SILENCE + 10  # of which all but PING is this machine's
    assert server.run(cut_off)["state"] == "running"
    later = server.schedule({"job_id": "later"})
    # Both programs go on to their ends, one of them where no server sees it.
    assert server.until(other, *ENDS)["state"] == "success" and server.output(other) == ALL
    assert place.stats("b", connected=True)["num_connections"] == 1
    place.await_file("a")
    end = time.monotonic() + 60
    while "silent for" not in place.log("a"):
        assert time.monotonic() < end, place.log("a")
        time.sleep(0.02)
    assert server.run(cut_off)["state"] == "running" and server.run(later)["state"] == "starting"
    assert any("waiting for an agent of group a" in message for message in server.messages(later))

    network.heal("a")
    assert server.until(cut_off, *ENDS)["state"] == "success", server.messages(cut_off)
    assert server.output(cut_off) == ALL
    assert server.until(later, *ENDS)["state"] == "success"
    assert place.stats("a", connected=True)["num_connections"] >= 2


def test_a_server_that_died_while_agents_were_cut_off_is_found_again(place: Place) -> None:
    server, network = place.server, place.network
    run_id = server.schedule({"job_id": "count-a"})
    while not server.output(run_id).startswith(b"1\n"):
        time.sleep(0.02)
    network.cut("a")
    server.kill()
    network.heal("a")
    network.cut("b")
    # On the same ports, as after a crash.
    (port,) = re.findall(r"agents may connect: address=\S+ port=(\d+)", server.log())
    config = place.directory / "apsis.yaml"
    config.write_text(config.read_text().replace("port: 0", f"port: {port}"))
    server.start()
    network.heal("b")
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    assert server.output(run_id) == ALL
    for name in "ab":
        place.stats(name, connected=True)
