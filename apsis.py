#!/usr/bin/env python3
"""Apsis, a job scheduler: one process, job files, programs on agents.

Read me first. Here are the command line of the server, the class that puts a server together, and the
order in which its parts start and stop. apsislib/__init__.py says where to read on.

    decide → commit → act → tell: apsislib/scheduler.py decides, apsislib/driver guards it with the
    one lock, apsislib/store commits, and only then programs are acted on and subscribers told.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apsislib.logs import Lines

if TYPE_CHECKING:
    from agent_server import AgentServer
    from apsislib.clock import Clock
    from apsislib.driver import Driver
    from apsislib.orders import Orders
    from apsislib.store import Store
    from apsislib.systemd import Notifier

VERSION = "0.1.0"
STOP = 15.0  # s; what the whole stop ladder may take before threads are left behind and named
WRITER = "apsis-writer"  # the thread that stores what was decided
UNSTORED = 74  # exit status when that could not be written until the end
DEATH = 70  # exit status when the timer, the writer or the kernel has failed: restart me
# Every run makes some hundred objects and few cycles: to look for these at every 700 objects, which is
# Python's own default, costs a quarter of the engine's time.
GC_THRESHOLD = (10_000, 10, 10)
READY = 10.0  # s; after which systemd is told that a server is ready that serves but runs nothing yet
SIGNALS = {signal.SIGTERM: "stop", signal.SIGINT: "stop", signal.SIGHUP: "hangup"}
HEEDED = (*SIGNALS, signal.SIGUSR1)  # they would end a process that does not know them yet
SWITCH = 0.001  # s; a thread that computes gives way to the timer after so long

PATIENCE = 1.0  # s; for who reads the log and does not keep up, before lines are lost
NOFILE = 65536  # descriptors; an agent that is connected takes three


log = logging.getLogger("apsis")


class Host:
    """The server, as programs see it: see programs.base.Host."""

    def __init__(self, driver: Driver, store: Store, clock: Clock, agents: AgentServer | None) -> None:
        from apsislib.upkeep import Upkeep

        self.clock = clock
        self.agents = agents
        self.stats = driver.stats
        self.upkeep = Upkeep(store, clock, lambda run_id: driver.live_run(run_id) is not None, driver.retired)
        self.report = driver.report
        self.run = driver.live_run
        self.spawn, self.insist = driver.spawn, driver.insist
        self.stored, self.note, self.offer = driver.stored, driver.note, driver.offer
        self.put_output, self.output_waiting = store.put_output, store.output_waiting
        self._store = store

    def output_length(self, run_id: str, output_id: str) -> int:
        with self._store.read() as reader:
            info = reader.output_info(run_id, output_id)
        return 0 if info is None else info.length

    def output_full(self) -> bool:
        return bool(self._store.output_full())


class Apsis:
    """A whole server. `start` brings it up part by part, `stop` takes it down in the other order."""

    def __init__(
        self,
        config: Any,
        restart: Callable[[bool], None] = lambda restart: None,
        nofile: tuple[int, int] | None = None,
    ) -> None:
        """Reads and checks everything, and listens; nothing runs yet. `nofile`: see LocalAgent.

        Raises JobErrors, BadRequest (config, database) or OSError (a port in use). `restart` is called
        when a client asks for the server's end: with True, it should be started again.
        """
        import programs
        from agent_server import AgentServer
        from apsislib import jobs
        from apsislib.api import Parts, Server
        from apsislib.calendars import Calendars
        from apsislib.clock import WallClock
        from apsislib.driver import Driver
        from apsislib.driver import Parts as DriverParts
        from apsislib.errors import BadRequest
        from apsislib.feeds import Feed
        from apsislib.live import Live
        from apsislib.loading import load_jobs, load_jobs_apart
        from apsislib.localagent import LocalAgent
        from apsislib.ports import Port, ports
        from apsislib.samples import Samples
        from apsislib.scheduler import Settings
        from apsislib.store import Store
        from apsislib.times import zones_doubt
        from apsislib.watch import Watcher
        from programs.late import Truths

        self.config = config
        clock = WallClock()
        calendars = Calendars(config.calendars)
        self.programs = table = programs.Table(config)
        kinds = jobs.Kinds(
            table.parse, calendars, config.schedule_types, config.condition_types, config.action_types
        )
        self._ended = restart
        self.watcher = None
        if config.reload.watch is not None:
            # Before the jobs are read: what changes while they are is seen.
            self.watcher = Watcher(config.job_dir, jobs.SUFFIX, self._files_changed, config.reload.watch)
        loaded = load_jobs(config, kinds)
        doubt = zones_doubt()
        for warning in (*config.warnings, *loaded.warnings, *([doubt] if doubt else ())):
            log.warning("%s", warning)

        agent = config.procstar.agent
        self.local = None
        listen, notes = ports(agent.server) if agent.enable else ([], [])
        for note in notes:
            log.warning("%s", note)
        if agent.local:
            self.local = LocalAgent(Path(f"{config.database.path}.agent.json"), nofile)
            me = self.local.identity
            listen.append(Port("127.0.0.1", me.port, me.token))

        self.store = Store(config.database.path, clock, config.database.timeout)
        self.store.open()
        self.feed = Feed()
        self.agents = None
        if listen:
            self.agents = AgentServer(
                listen,
                clock,
                reconnect_timeout=agent.connection.reconnect_timeout,
                output_full=self.store.output_full,
                on_change=lambda change: self.feed.publish([change]),
                claimed=lambda conn_id, proc_id, res: self.truths.claimed(conn_id, proc_id, res),
            )
        settings = Settings(
            config.schedule.horizon,
            config.schedule.max_expected,
            config.waiting.max_time,
            tuple(a.to_json() for a in config.action),
            config.schedule.catch_up,
            config.schedule.max_age if config.schedule.on_max_age == "record" else None,
        )
        self.driver = Driver(
            settings,
            loaded,
            self.store,
            self.feed,
            clock,
            DriverParts(
                load_program=table.load,
                parse_ad_hoc=lambda mapping, job_id: jobs.parse_job(mapping, job_id, kinds, ad_hoc=True),
                load_jobs=lambda: load_jobs_apart(config),
                get_calendar=calendars.get,
                host=lambda driver: Host(driver, self.store, clock, self.agents),
                die=self.die,
                smtp=config.smtp,
            ),
            since=config.schedule.since,
            refuse_older=config.schedule.max_age if config.schedule.on_max_age == "fail" else None,
        )
        if self.agents is not None:
            self.truths = Truths(table.load, Host(self.driver, self.store, clock, self.agents), self.agents)
        self.store.committed = self.driver.committed
        self.store.unwritable = self.driver.unwritable
        self.store.failing = self._say_failing
        self.store.on_death = lambda error: self.die(f"writer: {error}")
        self.samples = Samples(clock, self._sample)
        connections = self.agents.connections if self.agents is not None else None
        lookback = config.runs.lookback
        self.live = Live(
            self.driver, self.store, self.feed, clock, connections=connections, lookback=lookback
        )
        try:
            self.http = Server(
                Parts(
                    self.driver,
                    self.store,
                    clock,
                    connections,
                    restart,
                    VERSION,
                    lookback,
                    self.agents.history if self.agents is not None else tuple,
                    self.samples.series,
                    config.shown,
                ),
                config.http.host,
                config.http.port,
                take_socket=self.live.take,
                allowed_hosts=config.http.allowed_hosts,
            )
        except OSError as error:
            self.store.close()
            where = f"{config.http.host} port {config.http.port}"
            raise BadRequest(
                f"can't listen on {where}: {error.strerror}; choose another with --host and --port"
            ) from None

    def start(self) -> None:
        """Config, jobs and database are read: recover, then agents, then the timer, then HTTP."""
        self.store.start()
        self.driver.recover()
        self.programs.start(
            Host(self.driver, self.store, self.driver.clock, self.agents), self.store.installation
        )
        if self.agents is not None:
            self.agents.start()
            self.agents.restored()
        if self.local is not None and self.agents is not None:
            self.local.start(self.agents.addresses()[-1][1])
        self.driver.start()
        self.http.start()
        self.samples.start()
        if self.watcher is not None:
            self.watcher.start()
        name, port = self.http.address
        log.info("serving http://%s:%d/", f"[{name}]" if ":" in name else name, port)

    def stop(self) -> list[str]:
        """Down the ladder, with one deadline for all. Runs go on; answers threads that did not end."""
        from apsislib.clock import Deadline

        deadline = Deadline(STOP)
        left = self.watcher.stop(deadline.left()) if self.watcher is not None else []
        left += self.samples.stop(deadline)
        left += self.http.stop(deadline)
        left += self.live.stop(deadline)
        left += self.driver.stop(deadline)
        left += self.programs.close(deadline.left() or 0.0)
        if self.local is not None:
            self.local.stop()
        if self.agents is not None:
            left += self.agents.stop(deadline)
        if not self.store.close(deadline):
            left.append(WRITER)
        self.feed.close()
        for name in left:
            log.error("thread %s did not end in time", name)
        return left

    def _sample(self) -> dict[str, float]:
        """(apsis-samples) The figures that are kept over time."""
        stats = self.driver.stats()
        ended, failed = self.driver.tally.totals()
        runs, writer = stats["runs"], stats["writer"]
        return {
            "lateness": self.driver.peak(),
            "ended": ended,
            "failed": failed,
            "running": runs["starting"] + runs["running"] + runs["stopping"],
            "waiting": runs["waiting"],
            "memory": stats["statm_resident"],
            "database": writer["size"] + writer["wal_size"],
            "processor": stats["rusage_utime"] + stats["rusage_stime"],
        }

    def _say_failing(self, reason: str | None) -> None:
        if reason is None:
            log.warning("the database can be written again: going on")
        else:
            log.error("the database can't be written: %s; nothing new is started until it can", reason)
        self.driver.failing(reason)

    def _files_changed(self) -> None:
        """(apsis-watch) Reload the jobs, and say so."""
        from apsislib.errors import JobErrors

        try:
            answer = self.driver.reload()
        except JobErrors as error:
            log.error("job files have changed, but the jobs stay as they are: %s", error)
            for wrong in error.errors:
                log.error("job %s: %s", wrong.job_id, wrong)
            return
        said = [
            f"{kind}: {', '.join(answer[kind])}" for kind in ("added", "removed", "changed") if answer[kind]
        ]
        log.info("job files have changed: %s", "; ".join(said) or "nothing that matters")

    def die(self, what: str) -> None:
        """What remains could only lie: end at once, so that a restart recovers in seconds."""
        log.critical("the server can't go on: %s", what)
        logging.shutdown()
        os._exit(DEATH)


# -- commands --------------------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> int:
    """Run a server until it is told to end."""
    from apsislib import config as configs
    from apsislib.errors import ApsisError
    from apsislib.orders import Orders
    from apsislib.systemd import Notifier

    sys.setswitchinterval(SWITCH)
    notifier = Notifier(os.environ)
    # Not faulthandler.register(): that looks at threads while they go on, and may crash.
    signal.signal(signal.SIGUSR1, lambda *_: faulthandler.dump_traceback(all_threads=True))
    orders = Orders(SIGNALS, ("restart", "ready"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)  # blocked by a restart, see below
    try:
        config = configs.load(args.config, args.override)
        if args.local_agent:
            agent = replace(config.procstar.agent, local=True)
            config = replace(config, procstar=replace(config.procstar, agent=agent))
        host = args.serve_host or config.http.host
        port = config.http.port if args.serve_port is None else args.serve_port
        config = replace(config, http=replace(config.http, host=host, port=port))
        server = Apsis(config, lambda restart: orders.put("restart" if restart else "stop"), raise_nofile())
    except (ApsisError, OSError) as error:
        complain(error)
        return 1
    if not config.python.gc.enabled:
        gc.disable()
    gc.set_threshold(*(config.python.gc.threshold or GC_THRESHOLD))
    gc.collect()
    gc.freeze()  # jobs stay: no collection should look at them again
    try:
        return _serve(server, orders, notifier)
    except Exception:
        # The other threads would go on, and nobody would hear of a signal any more.
        server.die(f"its main thread failed:\n{traceback.format_exc()}")
        raise


def _serve(server: Apsis, orders: Orders, notifier: Notifier) -> int:
    """From the start to the end of a server; its exit status."""
    from apsislib.errors import ApsisError

    try:
        server.start()
    except (ApsisError, OSError) as error:
        complain(error)
        server.stop()
        return 1
    threading.Thread(target=_await_ready, args=(server, orders), name="apsis-ready", daemon=True).start()
    while (word := _next_word(orders, server, notifier)) in ("ready", "hangup"):
        if word == "ready":
            notifier.send("READY=1", f"STATUS={server.driver.status()}")
            continue
        notifier.send("RELOADING=1", f"MONOTONIC_USEC={int(server.driver.clock.monotonic() * 1e6)}")
        if server.agents is not None:
            try:
                server.agents.reload_certificate()
            except ApsisError as error:  # what is in use stays in use
                log.error("%s", error)
        notifier.send("READY=1")
    log.info("%s", "restarting" if word == "restart" else "stopping; runs go on")
    if word == "restart":  # the service goes on: it is ready again once the next process is
        notifier.send("RELOADING=1", f"MONOTONIC_USEC={int(server.driver.clock.monotonic() * 1e6)}")
    else:
        notifier.send("STOPPING=1")
    left = server.stop()
    if word == "restart":
        # What it is told while it is being restarted is heard, here or by the next process.
        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
        while (other := orders.get(0.0)) is not None:
            word = "stop" if other == "stop" else word
    if word == "restart":
        notifier.give_back(os.environ)
        logging.shutdown()
        os.execv(sys.executable, sys.orig_argv)
    log.info("stopped")
    if left:
        # A user's own program that blocks must not keep the process: its run is taken up at the next start.
        logging.shutdown()
        os._exit(UNSTORED if WRITER in left else 0)
    return 0


def raise_nofile() -> tuple[int, int]:
    """Let this process hold descriptors for thousands of agents, if it may. The limits that it had before.

    Shells and containers give 1,024, which three hundred agents use up.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NOFILE if before[1] == resource.RLIM_INFINITY else min(before[1], NOFILE)
    if before[0] != resource.RLIM_INFINITY and before[0] < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, before[1]))
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays at %d: %s", before[0], error)
    return before


def _await_ready(server: Apsis, orders: Orders) -> None:
    """(apsis-ready) Its schedules are made: mostly at once. Who wants it to end meanwhile is heard."""
    server.driver.is_running.wait(READY)
    orders.put("ready")


def _next_word(orders: Orders, server: Apsis, notifier: Any) -> str:
    """What is asked of the server next. Till then systemd's watchdog is told that it lives, if it does."""
    while (word := orders.get(notifier.interval)) is None:
        if server.driver.is_alive():
            notifier.send("WATCHDOG=1", f"STATUS={server.driver.status()}")
        else:
            log.critical("the timer stands still: systemd is not told that the server lives")
    return word


def check_jobs(args: argparse.Namespace) -> int:
    """Load and check a directory of job files, without a server."""
    import programs
    from apsislib import config as configs
    from apsislib import jobs
    from apsislib.calendars import Calendars
    from apsislib.cli.show import machine
    from apsislib.clock import WallClock
    from apsislib.errors import ApsisError
    from apsislib.loading import retention

    if not Path(args.dir).is_dir():
        print(f"error: not a directory: {args.dir}", file=sys.stderr)
        return 2
    try:
        config = configs.load(args.config)
        calendars = Calendars(config.calendars)
        kinds = jobs.Kinds(
            programs.Table(config).parse,
            calendars,
            config.schedule_types,
            config.condition_types,
            config.action_types,
        )
        found, errors = jobs.read_dir(args.dir, kinds)
        unread = {error.job_id for error in errors}
        now = WallClock().wall()
        errors += jobs.check(found, now, calendars.get, unread)
        errors += jobs.check_retention(found, now, calendars.get, retention(config))
        if args.check_dependencies_scheduled and not unread:
            errors += jobs.check_scheduled(found, now, calendars.get)
        errors.sort(key=lambda error: (error.path, error.line or 0))
    except jobs.JobErrors as several:
        found, errors = None, list(several.errors)
    except ApsisError as error:
        complain(error)
        return 1
    if args.format:
        keys = ("job_id", "path", "line", "message")
        report: dict[str, Any] = {"errors": [{key: getattr(one, key) for key in keys} for one in errors]}
        report["warnings"] = [] if found is None else list(map(str, found.warnings))
        sys.stdout.write(machine(report, args.format))
        return 1 if errors else 0
    for wrong in errors:
        print(f"{wrong.job_id}: {wrong}" if wrong.job_id else str(wrong))
    if found is not None:
        for warning in found.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return 1 if errors else 0


def create(args: argparse.Namespace) -> int:
    """Make an empty database. `serve` makes one too, if there is none."""
    from apsislib.clock import WallClock
    from apsislib.errors import ApsisError
    from apsislib.store import Store

    if Path(args.path).exists():
        print(f"error: {args.path} exists already", file=sys.stderr)
        return 1
    try:
        store = Store(Path(args.path), WallClock())
        store.open()
        store.close()
    except (ApsisError, OSError) as error:
        complain(error)
        return 1
    return 0


def complain(error: Exception) -> None:
    """An error that is the operator's to mend: sentences, no traceback."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    print(f"error: {error}" + (": make room on the disk" if full else ""), file=sys.stderr)
    for detail in getattr(error, "errors", ()):
        job = f"job {detail.job_id}: " if getattr(detail, "job_id", None) else ""
        print(f"  {job}{detail}", file=sys.stderr)


# -- command line ----------------------------------------------------------------------------------


def parser(prog: str) -> argparse.ArgumentParser:
    from apsislib import cli, moving, offline

    top = argparse.ArgumentParser(prog=prog, description="Apsis, a job scheduler.")
    cli.add_options(top)
    commands = top.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=cli.Parser
    )

    add = commands.add_parser("serve", help="run the server", description="Run the server.")
    add.add_argument("--config", metavar="FILE", nargs="?", help="the server's file (default: no file)")
    add.add_argument(
        "-o", "--override", metavar="NAME=VAL", action="append", default=[], help="set a config key"
    )
    add.add_argument("--host", dest="serve_host", metavar="HOST", help="address to listen on (127.0.0.1)")
    add.add_argument("--port", dest="serve_port", metavar="PORT", type=int, help="port to listen on (5000)")
    add.add_argument("--local-agent", action="store_true", help="run programs on this host, without set-up")
    add.add_argument("--debug", action="store_true", help="log everything")
    add.set_defaults(run=serve)

    add = commands.add_parser("check-jobs", help="check a directory of job files")
    add.add_argument("dir", metavar="DIR")
    add.add_argument("--config", metavar="FILE", help="the server's file, for its calendars and types")
    add.add_argument(
        "--check-dependencies-scheduled",
        action="store_true",
        help="also that dependencies of the next day's runs are scheduled, without cycles",
    )
    add.add_argument("--format", choices=("json", "yaml"), help="for machines")
    add.set_defaults(run=check_jobs)

    add = commands.add_parser("create", help="create an empty database")
    add.add_argument("path", metavar="PATH")
    add.set_defaults(run=create)

    offline.add_commands(commands)
    moving.add_commands(commands)
    commands.add_parser("agent", help="run an agent (see apsis agent --help)", add_help=False)
    cli.add_commands(commands, VERSION)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    from apsislib import itself

    itself.hold()
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["agent"]:
        from apsislib import agent

        return agent.main(args[1:])
    if args == [itself.LOAD]:
        from apsislib.loading import answer_with_jobs

        set_up_logging("WARNING")
        return answer_with_jobs()
    prog = "apsisctl" if Path(sys.argv[0]).name == "apsisctl" else "apsis"
    top = parser(prog)
    if args[:1] == ["_complete"]:
        from apsislib.cli import completion

        print("\n".join(completion.complete(top, args[1:], completion.ask_server)))
        return 0
    given = top.parse_args(args)
    if given.command is None:
        top.print_usage(sys.stderr)
        print("error: no command", file=sys.stderr)
        return 2
    level = "DEBUG" if getattr(given, "debug", False) else given.log_level
    if given.command == "serve":
        set_up_logging(level or "INFO", PATIENCE)
    else:
        set_up_logging(level or "WARNING")
    return int(given.run(given))


class _AccessLog(Lines):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nobody reads any more, say: then nothing more is written, rather than a complaint each time."""
        logging.getLogger("access").handlers = [logging.NullHandler()]
        log.warning("requests can't be logged: %s", sys.exc_info()[1])


def set_up_logging(level: str, patience: float | None = None) -> None:
    """To stderr: time, who, how bad (one letter), what. To stdout: requests, in the same form.

    With `patience`, of a server: so many seconds are waited for who reads them, then lines are lost.
    """
    logging.addLevelName(logging.CRITICAL, "C")
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(number, logging.getLevelName(number)[0])
    form, date = "%(asctime)s.%(msecs)03d %(name)-24s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    number = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}[level]
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if patience is not None and sys.stderr is not None:  # else its number may be another file's
        handlers = [Lines(sys.stderr.fileno(), patience, cut=False)]
    logging.basicConfig(format=form, datefmt=date, level=number, handlers=handlers, force=True)
    access = logging.getLogger("access")  # of the API's requests, apart: there are many
    access.propagate = False
    access.handlers = [logging.NullHandler()]
    if patience is not None and sys.stdout is not None:
        access.handlers = [_AccessLog(sys.stdout.fileno(), patience, cut=False)]
    access.handlers[0].setFormatter(logging.Formatter(form, date))


if __name__ == "__main__":
    sys.exit(main())
