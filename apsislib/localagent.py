"""The agent on the server's own host, so that programs run without any set-up.

It is a process of its own, with a session of its own: the server's end, however it comes, is not
the agent's, and a server that is started again finds it, with its programs, by what is written in
a file beside the database. An agent that was left alone, without server and programs, ends itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import resource
import secrets
import select
import signal
import subprocess
import threading
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apsislib import itself
from apsislib.errors import BadRequest

log = logging.getLogger(__name__)

GROUP = "default"
IDLE_EXIT = 600  # s without server and without records, after which the agent ends itself
REFUSED = 5.0  # s before an agent that could not be started is tried again
CRASHED = 1.0  # s before an agent that has ended is replaced, so that a broken one makes no busy loop


@dataclass(frozen=True, slots=True)
class Identity:
    """By what server and agent find each other again. Secret: whoever knows it may pose as the agent."""

    port: int
    token: str
    conn_id: str
    pid: int = 0

    @staticmethod
    def read(path: Path) -> Identity | None:
        """What an earlier server wrote; None where there is none."""
        try:
            return Identity(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise BadRequest(
                f"{path}: can't be read: {error}; remove it if no program of the local agent is running"
            ) from None

    @staticmethod
    def new() -> Identity:
        return Identity(0, secrets.token_urlsafe(32), str(uuid.uuid4()))

    def write(self, path: Path) -> None:
        """Whole or not at all, for nobody else's eyes."""
        draft = path.with_name(path.name + ".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "w") as file:
                json.dump(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # which does not know the name
            raise OSError(error.errno, error.strerror, str(draft)) from None
        draft.rename(path)

    def alive(self) -> bool:
        """Whether the process of this agent is still there, and not another with its pid."""
        try:
            return self.pid > 0 and self.conn_id.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False

    def found(self) -> Identity:
        """Me, with the pid of the process that has my conn_id, if one does.

        A server that was killed, or whose disk was full, may have started it and not written so.
        """
        if self.pid == 0 or self.alive():
            return self
        for at in Path("/proc").glob("[0-9]*"):
            try:
                argv = (at / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if (b"--conn-id", self.conn_id.encode()) in itertools.pairwise(argv):
                return replace(self, pid=int(at.name))
        return self


class LocalAgent:
    """Keeps one agent process alive while the server runs."""

    def __init__(self, path: Path, nofile: tuple[int, int] | None = None) -> None:
        """`path`: the file that holds its identity, beside the database.

        `nofile`: limits of open files for the agent, and so for programs, if other than the server's own.
        """
        self._path = path
        self._nofile = nofile
        self._written = Identity.read(path)
        me = (self._written or Identity.new()).found()
        # Nobody looks for the server at the port of an agent that has died: who has taken it may keep it.
        self.identity = me if me.alive() else replace(me, port=0)
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._keep_alive, name="apsis-local-agent")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, port: int) -> None:
        """The agent server listens on `port` of loopback: start the agent, or leave the living one."""
        if self.identity.port != port and self.identity.alive():
            # It would look for the server at the old port for ever; its programs are lost to us anyway.
            log.warning("the local agent was told another port; it is asked to end")
            os.kill(self.identity.pid, signal.SIGTERM)
            self.identity = Identity.new()
        self.identity = replace(self.identity, port=port)
        if self.identity.alive():
            log.info("the local agent lives: pid=%d", self.identity.pid)
        else:
            self._begin()
        if self.identity != self._written:
            self.identity.write(self._path)
        self._thread.start()

    def stop(self) -> None:
        """Look after it no more. The agent goes on: it has programs to look after."""
        os.close(self._stopping)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._stop)

    def _begin(self) -> None:
        """Start a process; who it is is to be written to the file."""
        me = self.identity
        argv = itself.command("agent", "--agent", "--plain")
        argv += ["--agent-host", "127.0.0.1", "--agent-port", str(me.port)]
        argv += ["--group-id", GROUP, "--conn-id", me.conn_id, "--idle-exit", str(IDLE_EXIT)]
        # A server that is back is found within this time; upstream's minute is for agents in thousands.
        argv += ["--connect-interval-max", "2"]
        env = {**os.environ, "PROCSTAR_AGENT_TOKEN": me.token}
        with open(self._path.with_suffix(".log"), "ab") as errors:
            self._child = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                close_fds=True,
            )
        if self._nofile is not None:
            # Long before it asks for them, and long before it starts a program.
            with contextlib.suppress(OSError):
                resource.prlimit(self._child.pid, resource.RLIMIT_NOFILE, self._nofile)
        self.identity = replace(me, pid=self._child.pid)
        log.info("local agent started: pid=%d port=%d", self._child.pid, me.port)

    def _replace(self) -> bool:
        """False: the system refuses, for want of processes, memory or room on the disk, say."""
        try:
            if self._child is None or self._child.poll() is not None:
                # Under the same conn_id: it says that it has none of the processes of the one before, whose
                # runs are errors then. Under another they would wait for the reconnect timeout, in vain.
                self._begin()
            self.identity.write(self._path)
        except OSError as error:
            log.error("can't start the local agent: %s; trying again in %g s", error, REFUSED)
            return False
        return True

    def _keep_alive(self) -> None:
        """(apsis-local-agent) Replace the agent when it has ended. Ends when stop() was called."""
        try:
            while self._wait_for_end():
                log.warning("the local agent has ended; starting another")
                while not self._replace():
                    if self._told_to_stop(REFUSED):
                        return
        except Exception:
            log.exception("the local agent is not looked after any more; restart the server")

    def _wait_for_end(self) -> bool:
        """Whether the agent has ended, and not our own time come."""
        while True:
            try:
                process = os.pidfd_open(self.identity.pid)
                break
            except ProcessLookupError:
                return not self._told_to_stop(CRASHED)
            except OSError:  # no descriptor is left: whether it lives is seen when there is one
                if self._told_to_stop(CRASHED):
                    return False
        try:
            if self._told_to_stop(None, process):
                return False
        finally:
            os.close(process)
        if self._child is not None:
            self._child.wait()
        else:
            with contextlib.suppress(ChildProcessError):  # ours where this process has restarted itself
                os.waitpid(self.identity.pid, 0)
        return not self._told_to_stop(CRASHED)

    def _told_to_stop(self, seconds: float | None, process: int | None = None) -> bool:
        """Wait so long, and for the end of `process`, unless stop() was called; whether it was."""
        poll = select.poll()  # not select(), which knows no descriptor above 1,023
        for descriptor in (self._stop, process):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        ready = poll.poll(None if seconds is None else seconds * 1000)
        return any(descriptor == self._stop for descriptor, _ in ready)
