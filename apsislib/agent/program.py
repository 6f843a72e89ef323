"""The agent as a program: builds the parts, runs the loop, and turns its end into an exit status."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from apsislib.agent import cgroups
from apsislib.agent.loop import Loop
from apsislib.agent.options import Options, environment, parse
from apsislib.agent.procs import Procs
from apsislib.agent.serve import Serve
from apsislib.agent.service import Service
from apsislib.agent.shutdown import Shutdown
from apsislib.agent.spec import parse_specs
from apsislib.clock import WallClock
from apsislib.errors import BadRequest
from apsislib.logs import Lines

log = logging.getLogger(__name__)

OK = 0
USAGE = 2  # also: no host, INPUT unreadable
NOTHING_TO_DO = 65  # no mode given, or the programs of INPUT were refused
NO_OUTPUT = 72  # the results could not be written
INTERNAL = 101

NOFILE_MAX = 1 << 20  # descriptors; a program that runs needs two or three


def main(argv: Sequence[str] | None = None) -> int:
    """Run an agent until its end; the exit status."""
    try:
        options = parse(argv, environment())
    except SystemExit as error:
        return USAGE if error.code else OK
    _open_standard()
    lines = Lines(2)
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=options.log_level, handlers=[lines], format=form, force=True)
    if not (options.exit or options.wait or options.serve or options.agent):
        log.error("nothing to do: give --exit, --wait, --serve or --agent")
        return NOTHING_TO_DO
    try:
        return _run(options)
    except Exception:
        log.critical("internal error", exc_info=True)
        return INTERNAL


def _run(options: Options) -> int:
    specs: dict[str, Any] = {}
    if options.input is not None:
        try:
            specs = _read_input(options.input)
        except (OSError, ValueError, RecursionError) as error:
            log.error("cannot read %s: %s", options.input, error)
            return USAGE
    loop = Loop(WallClock())
    procs = Procs(loop, dict(os.environb), options.restrict_exe, _raise_nofile(), cgroups.find())
    shutdown = Shutdown(loop, procs)
    procs.handled = loop.on_signals(shutdown.signals() | {signal.SIGCHLD: procs.reap})
    # Before any program is started: nobody would look after it if this failed.
    serve = None
    if options.serve:
        try:
            serve = Serve(loop, procs, shutdown, options.serve_port)
        except OSError as error:
            log.error("cannot serve on 127.0.0.1:%d: %s", options.serve_port, os.strerror(error.errno or 0))
            return USAGE
    try:
        procs.start(parse_specs(specs), shutdown.state)
    except BadRequest as error:
        log.error("cannot start %s: %s", options.input, error)
        return NOTHING_TO_DO
    service = Service(loop, procs, shutdown, options) if options.agent else None
    _arrange_end(options, shutdown)
    gc.collect()
    gc.freeze()  # what exists now stays for good: a child need not copy its pages
    try:
        loop.run()
        status = OK if service is None else service.finish()
    finally:
        if serve is not None:
            serve.close()
        loop.close()
    if options.print or options.output:
        status = status or _write_results(options, {p: procs.result(procs.get(p)) for p in procs.ids()})
    return status


def _arrange_end(options: Options, shutdown: Shutdown) -> None:
    if options.exit and options.wait:
        log.warning("--exit and --wait: waiting until all records are deleted")
    if options.wait and options.agent:
        shutdown.wait_for_work(options.wait_timeout)
    elif options.wait:
        shutdown.wait_until_empty()
    elif options.exit:
        shutdown.wait_until_still()


def _read_input(path: str) -> dict[str, Any]:
    if path == "-":
        document = json.load(sys.stdin)
    else:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    specs = document.get("specs") if isinstance(document, dict) else None
    if not isinstance(specs, dict):
        raise ValueError('not an object with "specs"')
    return specs


def _write_results(options: Options, results: dict[str, Any]) -> int:
    text = json.dumps(results, indent=2) + "\n"
    try:
        if options.print:
            with open(1, "w", encoding="utf-8", closefd=False) as stdout:
                stdout.write(text)
        if options.output:
            with open(options.output, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        log.error("cannot write results: %s", error)
        return NO_OUTPUT
    return OK


def _open_standard() -> None:
    """Have something at 0, 1 and 2: where a caller closed them, other files of ours would sit there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_nofile() -> tuple[int, int]:
    """Let the agent hold as many descriptors as it may. The limits before, which programs get back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1] if before[1] != resource.RLIM_INFINITY else NOFILE_MAX
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, NOFILE_MAX), before[1]))
    except (OSError, ValueError) as error:
        log.warning("cannot raise the limit of open files: %s", error)
    return before
