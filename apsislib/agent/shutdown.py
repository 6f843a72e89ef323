"""How an agent comes to its end: active, perhaps idling, done.

SIGTERM and SIGINT ask every program to end, then insist, then give the server time to fetch what they
left. SIGQUIT insists at once. SIGUSR1 takes no more work and waits for the rest. Besides there are the
ends that the command line asks for: --exit, --wait, --idle-exit.

New starts are accepted until the state is other than active: that is what servers know agents to do.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from apsislib.agent.loop import Loop, Timer
from apsislib.agent.procs import Proc, Procs

log = logging.getLogger(__name__)

ENDING = 60.0  # seconds that programs have to heed SIGTERM
FETCHING = 5.0  # seconds that the server has to fetch results and delete the records


class Shutdown:
    """The shutdown state, and what moves it on. Everything is called from the loop."""

    def __init__(self, loop: Loop, procs: Procs, ending: float = ENDING, fetching: float = FETCHING) -> None:
        self.state = "active"
        self.observers: list[Callable[[str], None]] = []  # told of each change of state
        self._loop = loop
        self._procs = procs
        self._ending = ending
        self._fetching = fetching
        self._seen: set[signal.Signals] = set()
        self._phase = ""  # of a SIGTERM or SIGQUIT: "ending", "killing", "fetching"
        self._timer: Timer | None = None
        self._when_empty = False  # done as soon as no records remain
        self._when_still = False  # done as soon as nothing runs
        procs.observers.append(self._changed)

    def signals(self) -> dict[signal.Signals, Callable[[], None]]:
        """What each signal to the agent does; each once in its life."""
        meanings = {
            signal.SIGTERM: self.terminate,
            signal.SIGINT: self.terminate,
            signal.SIGQUIT: self.kill,
            signal.SIGUSR1: self.drain,
        }

        def once(signum: signal.Signals, call: Callable[[], None]) -> Callable[[], None]:
            def received() -> None:
                if signum not in self._seen:
                    self._seen.add(signum)
                    log.warning("received %s", signum.name)
                    call()

            return received

        return {signum: once(signum, call) for signum, call in meanings.items()}

    def terminate(self) -> None:
        """End every program, by SIGTERM first."""
        if self._phase:
            return
        self._phase = "ending"
        if self._timer is not None:
            self._timer.cancel()
        self._procs.signal_all(signal.SIGTERM)
        self._timer = self._loop.call_after(self._ending, self.kill)
        self._advance()

    def kill(self) -> None:
        """End every program by SIGKILL."""
        if self._phase in ("killing", "fetching"):
            return
        self._phase = "killing"
        if self._timer is not None:
            self._timer.cancel()
        self._procs.signal_all(signal.SIGKILL)
        # Bounded too: a process may be stuck in the kernel.
        self._timer = self._loop.call_after(self._fetching, self.finish)
        self._advance()

    def drain(self) -> None:
        """Take no more work; done when the last record is deleted."""
        self._set("idling")
        self._when_empty = True
        self._advance()

    def wait_for_work(self, seconds: float) -> None:
        """Done when all records are deleted, or if none was made within `seconds`."""
        if self._procs.held:
            self.wait_until_empty()
        else:
            self._timer = self._loop.call_after(seconds, self._no_work)

    def wait_until_empty(self) -> None:
        self._when_empty = True
        self._advance()

    def wait_until_still(self) -> None:
        self._when_still = True
        self._advance()

    def finish(self) -> None:
        """Done, whatever remains."""
        if self.state == "done":
            return
        # Whoever was started so late would live on unknown to anybody.
        if self._phase:
            self._procs.signal_all(signal.SIGKILL)
        self._set("done")
        self._loop.stop()

    def _no_work(self) -> None:
        log.warning("no work came: ending")
        self.finish()

    def _set(self, state: str) -> None:
        order = ("active", "idling", "done")
        if order.index(state) > order.index(self.state):
            log.info("shutdown state=%s", state)
            self.state = state
            for observer in self.observers:
                observer(state)

    def _changed(self, event: str, proc: Proc) -> None:
        if event == "started" and self._timer is not None and not self._phase:
            # --wait: the first work has come.
            self._timer.cancel()
            self._timer = None
            self._when_empty = True
        # Not at once: who asked for this change is still to be answered, a ProcDelete before the ShutDown.
        self._loop.soon(self._advance)

    def _advance(self) -> None:
        if self.state == "done":
            return
        if self._phase in ("ending", "killing") and not self._procs.running:
            self._phase = "fetching"
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_after(self._fetching, self.finish)
        empty = not self._procs.held and (self._when_empty or self._phase == "fetching")
        if empty or (self._when_still and not self._procs.running):
            self.finish()
