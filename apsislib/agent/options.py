"""The command line of an agent: that of Procstar's, and a few options of our own."""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PORT = 59789
SERVE_PORT = 3000
LEVELS = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "error": 40}


@dataclass(frozen=True)
class Options:
    """What an agent is to do. Intervals and timeouts are seconds; None is no limit."""

    input: str | None
    log_level: int
    restrict_exe: str | None
    print: bool
    output: str | None
    exit: bool
    wait: bool
    wait_timeout: float
    serve: bool
    serve_port: int
    agent: bool
    agent_host: str | None
    agent_port: int
    conn_id: str
    group_id: str
    connect_interval_start: float
    connect_interval_mult: float
    connect_interval_max: float
    connect_count_max: int | None
    agent_read_timeout: float
    plain: bool
    idle_exit: float | None

    @property
    def url(self) -> str:
        """Where the server is."""
        return f"{'ws' if self.plain else 'wss'}://{self.agent_host}:{self.agent_port}/"


def parse(argv: Sequence[str] | None, env: Mapping[str, str]) -> Options:
    """The options. Ends with SystemExit, status 2, where they are wrong, and 0 after --help."""
    parser = _parser(env)
    given = vars(parser.parse_args(argv))
    if given["print"] or given["output"]:
        given["exit"] = True
    given["log_level"] = LEVELS[given["log_level"]]
    if given["agent"] and not given["agent_host"]:
        parser.error("--agent needs --agent-host, or PROCSTAR_AGENT_HOST in the environment")
    return Options(**given)


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apsis agent", description="Run programs for a server.", allow_abbrev=False
    )
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="?", help="JSON file of programs to start first; - for stdin")
    add("--log-level", choices=list(LEVELS), default="warn", help="what to log to stderr (default: warn)")
    add("--restrict-exe", metavar="PATH", help="run only this executable")
    add("-p", "--print", action="store_true", help="print results as JSON at the end; implies --exit")
    add("-o", "--output", metavar="PATH", help="write results as JSON at the end; implies --exit")
    add("-x", "--exit", action="store_true", help="exit when nothing is running")
    add("-w", "--wait", action="store_true", help="exit when all records have been deleted")
    add(
        "--wait-timeout", metavar="SECS", type=_count, default=600, help="with --wait --agent: for first work"
    )
    add("-s", "--serve", action="store_true", help="serve the records over local HTTP")
    add("--serve-port", metavar="PORT", type=_port, default=SERVE_PORT, help="on 127.0.0.1 (default: 3000)")
    add("-a", "--agent", action="store_true", help="connect to a server and run what it asks")
    add("--agent-host", metavar="HOST", default=env.get("PROCSTAR_AGENT_HOST"), help="the server")
    add("--agent-port", metavar="PORT", type=_port, default=PORT, help="its port (default: 59789)")
    add("--conn-id", metavar="ID", default=str(uuid.uuid4()), help="a name for this agent (default: random)")
    group = env.get("PROCSTAR_GROUP_ID") or "default"
    add("--group-id", metavar="ID", default=group, help="its group (default: PROCSTAR_GROUP_ID, or default)")
    add("--connect-interval-start", metavar="SECS", type=_seconds, default=1.0, help="first delay of retries")
    add("--connect-interval-mult", metavar="FAC", type=_seconds, default=2.0, help="growth of that delay")
    add("--connect-interval-max", metavar="SECS", type=_seconds, default=60.0, help="longest delay")
    add("--connect-count-max", metavar="COUNT", type=_count, help="exit with 1 after so many failures")
    add("--agent-read-timeout", metavar="SECS", type=_seconds, default=60.0, help="silence that means loss")
    add("--plain", action="store_true", help="connect without TLS: for servers on this machine")
    add("--idle-exit", metavar="SECS", type=_seconds, help="exit after so long without server and records")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 10**9:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise ValueError(text)
    return value


def environment() -> dict[str, str]:
    """The agent's own environment; what is not UTF-8 in it is nothing that an agent reads."""
    return dict(os.environ)
