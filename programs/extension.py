"""Programs of users: a class importable from PYTHONPATH, run in a thread of the server.

A job names it by `type: package.module.Class`, or by a short name from `program_types`; the other keys
are its own. Templates in their texts are expanded when a run is made. The class needs

    from_config(mapping) -> program       a class method, given the expanded keys. What it raises is an
                                          error of the job where no key has a template, else of the run.
    run(run_id, cfg, report) -> None      does the work, in a thread of its own. `cfg` is the mapping.
                                          Returning is success, raising an error with its traceback,
                                          unless `report` has been told how it ended.

and may have

    check(mapping) -> None                a class method, given the keys of a job file with their templates
                                          as they are; what it raises is an error of the job
    bind(names) -> program                called before run and connect with the run's args, run_id and job_id
    stop() -> None                        asked to end soon; run() goes on until it has. From another thread.
    signal(signum) -> None                likewise
    connect(run_id, run_state, cfg, report) -> None
                                          instead of run(), after the server was restarted while it ran;
                                          `run_state` is what report.running() was last given. A run of a
                                          class without it ends in error at a restart.

`report` has running(run_state=None, meta=None), update(meta), output(data), log(text), and
success(), failure(message), error(message), of which the first counts. running() should be called as
soon as there is something to stop: until then the run is starting. The first update(), output() or
end does it otherwise, without a run_state.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from apsislib import classes
from apsislib.clock import Deadline
from apsislib.errors import FieldError, Unavailable
from apsislib.runs import Finished, Json, Placed, Remark, Run, Running, Update
from apsislib.states import State
from programs.base import (
    OUTPUT,
    OUTPUT_NAME,
    OUTPUT_TYPE,
    Bound,
    Expand,
    Host,
    is_static,
    plain,
    signal_name,
    template,
)

log = logging.getLogger(__name__)

RETRY = 1.0  # s; after which a database that can't be read is tried again


class Extensions:
    """The users' programs that are running in this server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _live; leaf
        self._live: dict[str, tuple[threading.Thread, Any]] = {}  # by run ID: its thread, its program

    def parse(
        self, dotted: str, mapping: Mapping[str, Any], kind: str, shown: str | None = None
    ) -> Extension:
        """The unbound program. `shown`: the type to store and show, where that is not the class's path.

        Raises FieldError: no such class, or it refuses its keys.
        """
        cls = classes.find(dotted, "program", _NEEDS)
        if hasattr(cls, "check"):
            classes.called(shown or dotted, cls.check, dict(mapping))
        config = {
            key: _check(value, str(key)) for key, value in mapping.items() if key not in ("type", "str")
        }
        program = Extension(shown or dotted, cls, config, self)
        if program.static:
            program.make(config)
        return program

    def load(self, dotted: str, json: Json, shown: str | None = None) -> Bound:
        """The bound program. Raises FieldError."""
        config = {key: value for key, value in json.items() if key not in ("type", "str")}
        return Extension(shown or dotted, classes.find(dotted, "program", _NEEDS), config, self)

    def begin(self, run_id: str, thread: threading.Thread, program: Any) -> None:
        with self._lock:
            self._live[run_id] = (thread, program)
        try:
            thread.start()
        except RuntimeError:
            self.end(run_id)
            raise

    def end(self, run_id: str) -> None:
        with self._lock:
            self._live.pop(run_id, None)

    def program(self, run_id: str) -> Any | None:
        """The program of a live run."""
        with self._lock:
            found = self._live.get(run_id)
        return found and found[1]

    def close(self, timeout: float | None) -> list[str]:
        deadline = Deadline(timeout)
        with self._lock:
            threads = [thread for thread, _ in self._live.values()]
        for thread in threads:
            thread.join(deadline.left())
        return [thread.name for thread in threads if thread.is_alive()]


class Extension(Bound):
    """Adapts a user's class. `config`: its keys, templates until bound."""

    def __init__(self, dotted: str, cls: type, config: Mapping[str, Any], live: Extensions) -> None:
        self._dotted = dotted
        self._cls = cls
        self._config = dict(config)
        self._live = live

    def __getstate__(self) -> dict[str, Any]:
        """Jobs are parsed in another process than they run in; threads stay where they are."""
        return {**self.__dict__, "_live": None}

    def __str__(self) -> str:
        keys = " ".join(f"{key}={value}" for key, value in self._config.items())
        return f"{self._dotted} {keys}".rstrip()

    @property
    def static(self) -> bool:
        return all(is_static(text) for text in _texts(self._config))

    def to_json(self) -> dict[str, Any]:
        return {"type": self._dotted, **self._config, "str": str(self)}

    def make(self, config: Mapping[str, Any]) -> Any:
        """An instance. Raises FieldError with what the class says."""
        return classes.called(self._dotted, self._cls.from_config, dict(config))  # type: ignore[attr-defined]

    def bind(self, expand: Expand) -> Extension:
        config = {key: _expanded(value, key, expand) for key, value in self._config.items()}
        self.make(config)
        return Extension(self._dotted, self._cls, config, self._live)

    def launch(self, run: Run, host: Host) -> None:
        # As with agents: a mark on disk before anything begins, so that after a crash nothing runs twice.
        host.report(run.run_id, Placed({"conn_id": "server"}))

    def send(self, run: Run, host: Host) -> None:
        self._begin(run, host, "run")

    def connect(self, run: Run, host: Host) -> None:
        if run.state is State.STARTING:
            text = "the server was restarted while the program started: it may have begun"
            host.report(run.run_id, Finished(State.ERROR, text))
        elif not hasattr(self._cls, "connect"):
            text = f"the server was restarted, and {self._dotted} has no connect() to go on with"
            host.report(run.run_id, Finished(State.ERROR, text))
        else:
            self._begin(run, host, "connect")

    def _begin(self, run: Run, host: Host, method: str) -> None:
        try:
            program = self.make(self._config)
            if hasattr(program, "bind"):
                names = {**run.args, "run_id": run.run_id, "job_id": run.job_id}
                with classes.unleaving():
                    program = program.bind(names) or program
        except Exception as error:
            text = traceback.format_exc().encode("utf-8", "replace")
            host.report(run.run_id, Finished(State.ERROR, str(error), output=text))
            return
        # A daemon: a user's loop must not keep the server from stopping. close() waits for it for a while.
        thread = threading.Thread(
            target=self._run, args=(program, run, host, method), name=f"apsis-run-{run.run_id}", daemon=True
        )
        self._live.begin(run.run_id, thread, program)

    def _run(self, program: Any, run: Run, host: Host, method: str) -> None:
        """Ends when the user's method does."""
        report = Reporter(run, host, _stored(run, host) if method == "connect" else None)
        try:
            with classes.unleaving():
                if method == "connect":
                    state = (run.run_state or {}).get("program")
                    program.connect(run.run_id, state, self._config, report)
                else:
                    program.run(run.run_id, self._config, report)
            report.success()
        except Exception as error:
            log.warning("program %s of run %s raised %s", self._dotted, run.run_id, type(error).__name__)
            report.error(f"{type(error).__name__}: {error}", traceback.format_exc())
        finally:
            self._live.end(run.run_id)

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        program = self._live.program(run.run_id)
        method = "stop" if stop else "signal"
        call = getattr(program, method, None)
        if call is None:
            text = "it has no stop(), and goes on" if stop else f"{signal_name(signum)} reaches nothing"
            host.report(run.run_id, Remark(f"{self._dotted}: {text}"))
            return

        def work() -> None:
            try:
                with classes.unleaving():
                    call() if stop else call(signum)
            except Exception as error:
                log.warning("%s() of run %s failed:\n%s", method, run.run_id, traceback.format_exc())
                host.report(run.run_id, Remark(f"{method}() failed: {type(error).__name__}: {error}"))

        host.spawn(work)  # it may block


class Reporter:
    """What a user's program tells. Any thread."""

    def __init__(self, run: Run, host: Host, stored: int | None) -> None:
        """`stored`: bytes of output of a run that is known to be running; None: it has not begun."""
        self.host = host
        self._run_id = run.run_id
        self._lock = threading.RLock()  # protects the rest; held while the host is told, to keep the order
        self._begun = stored is not None
        self._ended = False
        self._length = stored or 0

    def running(self, run_state: Any = None, meta: Mapping[str, Any] | None = None) -> None:
        """`run_state`: what connect() needs after a restart; anything that json can write. Once only."""
        with self._lock:
            if not self._begun and not self._ended:
                self._begun = True
                self.host.report(self._run_id, Running({"program": run_state}, dict(meta or {})))

    def update(self, meta: Mapping[str, Any]) -> None:
        """What is shown with the run; replaces what was told before."""
        self.running()
        self.host.report(self._run_id, Update(dict(meta)))

    def log(self, text: str) -> None:
        """A line for the run's log."""
        self.host.report(self._run_id, Remark(str(text)))

    def output(self, data: bytes | str) -> None:
        """More output."""
        piece = data.encode("utf-8", "replace") if isinstance(data, str) else bytes(data)
        with self._lock:
            self.running()
            if piece and not self._ended:
                self.host.put_output(
                    self._run_id, OUTPUT, self._length, piece, name=OUTPUT_NAME, content_type=OUTPUT_TYPE
                )
                self._length += len(piece)

    def success(self, meta: Mapping[str, Any] | None = None) -> None:
        self._finish(State.SUCCESS, None, meta)

    def failure(self, message: str, meta: Mapping[str, Any] | None = None) -> None:
        self._finish(State.FAILURE, str(message), meta)

    def error(self, message: str, output: str | None = None, meta: Mapping[str, Any] | None = None) -> None:
        """`output`, a traceback say, is added to the output."""
        if output:
            self.output(output)
        self._finish(State.ERROR, str(message), meta)

    def _finish(self, state: State, message: str | None, meta: Mapping[str, Any] | None) -> None:
        with self._lock:
            if self._ended:
                return
            if state is not State.ERROR:
                self.running()
            self._ended = True
            self.host.report(self._run_id, Finished(state, message, None if meta is None else dict(meta)))


def _stored(run: Run, host: Host) -> int:
    """Bytes of output that the run has stored. Waits for as long as the database can't be read."""
    while True:
        try:
            return host.output_length(run.run_id, OUTPUT)
        except Unavailable as error:
            log.warning("run %s: its output can't be read: %s; trying again", run.run_id, error)
            threading.Event().wait(RETRY)


_NEEDS = ("from_config", "run")


def _check(value: Any, key: str) -> Any:
    """A value as json can write it, templates in its texts checked."""
    if isinstance(value, Mapping):
        return {str(k): _check(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_check(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        return template(value, key)
    except FieldError as error:
        raise FieldError(error.message, [key.split(".")[0].split("[")[0]]) from None


def _expanded(value: Any, key: str, expand: Expand) -> Any:
    if isinstance(value, Mapping):
        return {k: _expanded(v, key, expand) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(item, key, expand) for item in value]
    return plain(expand(value), key) if isinstance(value, str) else value


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
