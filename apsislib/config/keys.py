"""The keys of the server's file: each with its meaning, its unit and the reason for its default.

A key's entry in one of these classes is all there is to know of it: the reader, the list of known
keys and `shown` go by them. Durations are seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from apsislib import actions, catchup
from apsislib.config import values


def _key(
    parse: Callable[[Any], Any],
    default: Any = MISSING,
    *,
    env: str | None = None,  # the environment variable that is asked if the file says nothing
    secret: bool = False,  # shown() hides it
    in_dir: bool = False,  # a path, relative to the file's directory
) -> Any:
    return field(default=default, metadata={"parse": parse, "env": env, "secret": secret, "in_dir": in_dir})


def _section(cls: type, optional: bool = False) -> Any:
    if optional:
        return field(default=None, metadata={"section": cls, "optional": True})
    return field(default_factory=cls, metadata={"section": cls})


@dataclass(frozen=True, slots=True)
class Database:
    # The SQLite file. It may also be given as `database: PATH`.
    path: Path = _key(values.path, Path("apsis.db"), in_dir=True)
    # Seconds that a statement waits for another process's lock. SQLite's own default.
    timeout: float = _key(values.duration, 5.0)


@dataclass(frozen=True, slots=True)
class Runs:
    # Runs older than this many seconds are not listed; conditions still see them. None: all are.
    lookback: float | None = _key(values.duration_or_off, None)
    # Finished runs leave the database after this many seconds, by a job of the server's own,
    # apsis-retention; "off": they are kept for ever. None: 90 days, unless the database was imported.
    retention: float | Literal["off"] | None = _key(values.retention, None)
    # What becomes of them.
    on_retention: str = _key(values.one_of("archive", "delete"), "archive")
    # The file that they are moved to. None: NAME-archive.db beside the database NAME.db.
    archive: Path | None = _key(values.path, None)


@dataclass(frozen=True, slots=True)
class Schedule:
    # Seconds ahead for which scheduled runs exist. A day: what operators plan, skip and start early.
    horizon: float = _key(values.duration, 86400.0)
    # Where scheduling goes on at start: the later of the stored clock and this instant. None: stored.
    since: float | Literal["now"] | None = _key(values.since, None)
    # What becomes of occurrences that nothing could be started for in time, as the server was down, say:
    # all, latest or none, or {policy, window, cap, pace}. A job may say otherwise. All: a scheduler that
    # leaves work out of its own accord is not trusted with it.
    catch_up: catchup.CatchUp = _key(catchup.parse_server, catchup.DEFAULT)
    # Occurrences missed by more seconds than this are not run. None: all that were missed are run.
    max_age: float | None = _key(values.duration_or_off, None)
    # What is done about those: recorded as missed, or the server refuses to start.
    on_max_age: str = _key(values.one_of("record", "fail"), "record")
    # Scheduled runs of one schedule at most, horizon or not: one a second would be 86,400 a day.
    max_expected: int = _key(values.whole(1, 1_000_000), 2000)


@dataclass(frozen=True, slots=True)
class Waiting:
    # Seconds that a run may wait for its conditions before it is an error. None: for ever.
    max_time: float | None = _key(values.duration_or_off, None)


@dataclass(frozen=True, slots=True)
class Timeout:
    # Seconds that a program may run if its job does not say. None: for ever.
    duration: float | None = _key(values.duration_or_off, None)
    # The signal, by number, that it then gets.
    signal: int = _key(values.parse_signal, int(signal.SIGTERM))


@dataclass(frozen=True, slots=True)
class Program:
    timeout: Timeout = _section(Timeout)


@dataclass(frozen=True, slots=True)
class Output:
    # Bytes of one run's output that are stored. More is hardly read, and a job in a loop fills disks.
    max_size: int = _key(values.size, 100_000_000)
    # What happens there: the rest is not stored, or the program is killed and the run fails.
    on_max_size: str = _key(values.one_of("truncate", "kill"), "truncate")


@dataclass(frozen=True, slots=True)
class Reload:
    # Whether changed job files are reloaded, half a second after the last change. The number of seconds
    # between two looks counts only where the system does not tell of changes; `true` means 5. None: only
    # when told to, because a file that is being edited should not take effect half way.
    watch: float | None = _key(values.watch, None)


@dataclass(frozen=True, slots=True)
class Http:
    # The address to listen on. Loopback: whoever reaches the port may run commands as the agents' user.
    host: str = _key(values.text, "127.0.0.1")
    port: int = _key(values.port, 5000)
    # Names under which browsers may reach the server, besides the address itself (a proxy's name, say).
    # Any other name is refused: a web page could point its own name here.
    allowed_hosts: tuple[str, ...] = _key(values.texts, ())


@dataclass(frozen=True, slots=True)
class Tls:
    # The agent server's certificate, PEM.
    cert_path: Path | None = _key(values.path, None, env="PROCSTAR_AGENT_CERT", in_dir=True)
    # Its private key. Default: beside the certificate, with the suffix .key.
    key_path: Path | None = _key(values.path, None, env="PROCSTAR_AGENT_KEY", in_dir=True)


@dataclass(frozen=True, slots=True)
class Server:
    # The address where agents connect. None, also written `*`: all interfaces, as agents are elsewhere.
    host: str | None = _key(values.host, None, env="PROCSTAR_AGENT_HOST")
    # The port that agents try by default; 0: any free one.
    port: int = _key(values.port, 59789, env="PROCSTAR_AGENT_PORT")
    # What agents must present. Empty: whoever reaches the port is taken for an agent.
    access_token: str = _key(values.secret, "", env="PROCSTAR_AGENT_TOKEN", secret=True)
    # Without TLS. To other hosts that has to be asked for: token and output can be read on the way.
    plain: bool = _key(values.boolean, False)
    tls: Tls = _section(Tls)


@dataclass(frozen=True, slots=True)
class Connection:
    # Seconds that a run waits, starting, for an agent of its group. 0: it must be there. None: for ever,
    # since an agent that is late is better than a run that did not happen.
    start_timeout: float | None = _key(values.duration_or_zero, None)
    # Seconds that an agent may be away before its runs are errors. None, written `off`: for ever. An
    # hour outlasts a reboot and most network trouble, and a run that is lost is known the same day.
    reconnect_timeout: float | None = _key(values.duration_or_off, 3600.0)


@dataclass(frozen=True, slots=True)
class Polling:
    # Seconds between questions for a running program's resource figures; None, written `off`: only at
    # its end. They are for people who watch, and each answer is a row written: 10 s keeps that below
    # 100 rows/s for a thousand running programs.
    update_interval: float | None = _key(values.duration_or_off, 10.0)
    # Seconds between questions for new output; None, written `off`: only at its end. One second looks
    # live, and no answer is written if there is nothing new.
    output_interval: float | None = _key(values.duration_or_off, 1.0)


@dataclass(frozen=True, slots=True)
class Sudo:
    # What precedes `--non-interactive --user USER -- ARGV` of a program with sudo_user.
    argv: tuple[str, ...] = _key(values.argv, ("/usr/bin/sudo", "--preserve-env", "--set-home"))


@dataclass(frozen=True, slots=True)
class Resources:
    # Memory of a program whose job does not say, in 10^9 bytes. None: no limit.
    mem_max_gb: float | None = _key(values.positive, None)


@dataclass(frozen=True, slots=True)
class Ecs:
    """procstar-ecs programs. If the section is there, what has no default is required."""

    cluster_name: str = _key(values.text)
    container_name: str = _key(values.text)  # as in the task definition
    default_task_definition: str = _key(values.text)  # name, name:revision or ARN
    region: str = _key(values.text)
    aws_account_id: str = _key(values.account)
    ebs_volume_role: str = _key(values.text)  # the role's name, with which ECS makes volumes
    log_group: str = _key(values.text)  # where the container's own log goes, in CloudWatch
    log_stream_prefix: str = _key(values.text)  # what precedes `/TASK_ID` in the name of its stream
    default_mem_gb: float = _key(values.positive)  # 10^9 bytes
    default_vcpu: float = _key(values.positive)
    default_disk_gb: float = _key(values.positive)  # 10^9 bytes
    # What one task of the cluster can have; a run that wants more is an error. None: AWS decides.
    max_mem_gb: float | None = _key(values.positive, None)
    max_vcpu: float | None = _key(values.positive, None)
    # Keep each task's volume when it ends.
    retain_ebs: bool = _key(values.boolean, False)
    # Seconds from the start of a run until the agent of its task must have connected. None, written
    # `off`: for ever. As long as the agent in the recommended image waits for work.
    start_timeout: float | None = _key(values.duration_or_off, 900.0)
    # Seconds between searches for tasks of this installation that no run knows, which are stopped;
    # `true` means 300. None, written `off` or `false`: never. Tasks cost money; five minutes are little.
    sweep: float | None = _key(values.sweep, 300.0)
    # Passed to RunTask as they are. None: the cluster's default capacity provider, no awsvpc network.
    launch_type: str | None = _key(values.one_of("EC2", "FARGATE", "EXTERNAL"), None)
    # A list of {capacityProvider, weight, base}, or just the name of one. Not with a launch type.
    capacity_provider_strategy: tuple[Mapping[str, Any], ...] | None = _key(values.capacity_providers, None)
    network_configuration: Mapping[str, Any] | None = _key(values.mapping, None)


@dataclass(frozen=True, slots=True)
class Agent:
    # Listen for agents on other hosts.
    enable: bool = _key(values.boolean, False)
    # Start an agent of group `default` on this host, so that programs run without any set-up. Has to be
    # asked for, since its programs run as the server's user.
    local: bool = _key(values.boolean, False)
    server: Server = _section(Server)
    connection: Connection = _section(Connection)
    run: Polling = _section(Polling)
    sudo: Sudo = _section(Sudo)
    resource_defaults: Resources = _section(Resources)
    ecs: Ecs | None = _section(Ecs, optional=True)


@dataclass(frozen=True, slots=True)
class Procstar:
    agent: Agent = _section(Agent)


@dataclass(frozen=True, slots=True)
class Gc:
    # Python's cyclic garbage collector.
    enabled: bool = _key(values.boolean, True)
    # Its three thresholds. None: the interpreter's.
    threshold: tuple[int, int, int] | None = _key(values.three, None)


@dataclass(frozen=True, slots=True)
class Python:
    gc: Gc = _section(Gc)


@dataclass(frozen=True, slots=True)
class Auth:
    username: str = _key(values.text)
    password: str = _key(values.secret, secret=True)


@dataclass(frozen=True, slots=True)
class Smtp:
    """How e-mail actions send."""

    host: str = _key(values.text, "localhost")
    port: int = _key(values.port, 0)  # 0: the usual one
    ssl: str = _key(values.ssl, "off")  # off, on, starttls
    auth: Auth | None = _section(Auth, optional=True)


@dataclass(frozen=True, slots=True)
class Config:
    # The directory of job files. Older names: jobs, job_dirs, jobdir.
    job_dir: Path = _key(values.path, Path("jobs"), in_dir=True)
    # The directory of NAME.cal files. None: only the built-in calendars.
    calendars: Path | None = _key(values.path, None, env="ORA_CALENDARS", in_dir=True)
    database: Database = _section(Database)
    runs: Runs = _section(Runs)
    schedule: Schedule = _section(Schedule)
    waiting: Waiting = _section(Waiting)
    program: Program = _section(Program)
    output: Output = _section(Output)
    reload: Reload = _section(Reload)
    http: Http = _section(Http)
    procstar: Procstar = _section(Procstar)
    python: Python = _section(Python)
    smtp: Smtp = _section(Smtp)
    # Actions that follow the transitions of every run, besides its job's own.
    # They are parsed last: action_types may name their classes.
    action: tuple[actions.Action, ...] = _key(values.items, ())
    # Short names for users' own classes: name -> package.module.Class.
    program_types: Mapping[str, str] = field(default_factory=dict, metadata={"parse": values.types})
    schedule_types: Mapping[str, str] = field(default_factory=dict, metadata={"parse": values.types})
    condition_types: Mapping[str, str] = field(default_factory=dict, metadata={"parse": values.types})
    action_types: Mapping[str, str] = field(default_factory=dict, metadata={"parse": values.types})
    # Not keys: what was read.
    source: Path | None = None  # the file; None: there is none, all are defaults
    warnings: tuple[str, ...] = ()  # for the log

    def shown(self) -> dict[str, Any]:
        """The configuration in force, as JSON can write it, without secrets."""
        return {k: v for k, v in _shown(self).items() if k not in ("source", "warnings")}


def _shown(value: Any) -> Any:
    if is_dataclass(value) and not hasattr(value, "to_json"):
        shown = {}
        for f in fields(value):
            item = getattr(value, f.name)
            shown[f.name] = "***" if f.metadata.get("secret") and item else _shown(item)
        return shown
    if isinstance(value, tuple | list):
        return [_shown(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _shown(v) for k, v in value.items()}
    if hasattr(value, "to_json"):
        return value.to_json()
    return str(value) if isinstance(value, Path) else value
