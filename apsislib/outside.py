"""Work for actions and conditions that may block for long: users' own classes, and e-mail.

It has threads of its own, so that a class that hangs delays only others of its kind:

    apsis-own-N      users' own actions, and e-mail
    apsis-check-N    users' own conditions
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parseaddr
from typing import Any

from apsislib import conditions, extensions, mail, templates
from apsislib.conditions import BoundOwn, Verdict
from apsislib.config.keys import Smtp
from apsislib.errors import ApsisError, BadRequest
from apsislib.extensions import Snapshot
from apsislib.runs import Args, Check, Job, Owe, Run
from apsislib.states import State
from apsislib.store import Store

log = logging.getLogger(__name__)

ACTIONS = 4  # at once
CHECKS = 4
FOUND = 10_000  # runs that a condition is given at most, the newest


class Outside:
    def __init__(
        self,
        store: Store,
        smtp: Smtp,
        get_calendar: Callable[[str], Any],
        find_job: Callable[[str], Job | None],
        expected: Callable[[str], Iterable[Run]],
    ) -> None:
        """`expected`: the runs of a job that are not in the database yet."""
        self._store = store
        self._smtp = smtp
        self._get_calendar = get_calendar
        self._find_job = find_job
        self._expected = expected
        self.actors = ThreadPoolExecutor(ACTIONS, "apsis-own")
        self.checkers = ThreadPoolExecutor(CHECKS, "apsis-check")

    @property
    def pools(self) -> tuple[ThreadPoolExecutor, ...]:
        return self.actors, self.checkers

    def act(self, owe: Owe) -> str | None:
        """(apsis-own) Do an action; answers a line for the run's log. Raises what goes wrong."""
        run, action = owe.run, owe.action
        names = templates.names(run.args, run.run_id, run.job_id, self._get_calendar)

        def expand(text: str) -> str:
            return templates.expand(text, names)

        snapshot = self._snapshot(run)
        if action.get("type") == "email":
            subject = action.get("subject")
            message = mail.compose(action, subject and expand(subject), snapshot)
            refused = mail.send(self._smtp, message)
            if refused:
                sent = ", ".join(to for to in action["to"] if parseaddr(to)[1] not in refused)
                whom = "; ".join(f"{to}: {why}" for to, why in refused.items())
                raise ApsisError(f"sent e-mail to {sent}, but the mail server refused {whom}")
            return f"action sent e-mail to {', '.join(action['to'])}"
        if "." not in str(action.get("type")):
            raise BadRequest(f"unknown action type: {action.get('type')}")
        said = extensions.act(action, snapshot, expand)
        return said and f"action: {said}"

    def _snapshot(self, run: Run) -> Snapshot:
        def output(last: int | None = None) -> bytes:
            with self._store.read() as reader:
                info = reader.output_info(run.run_id, "output")
                length = 0 if info is None else info.length
                return b"".join(reader.output(run.run_id, "output", 0 if last is None else length - last))

        def lines() -> list[tuple[float, str]]:
            with self._store.read() as reader:
                return reader.log(run.run_id)

        job = self._find_job(run.job_id)
        return extensions.snapshot(run, None if job is None else job.json, output, lines)

    def check(self, check: Check) -> tuple[Verdict, str | None]:
        """(apsis-check) Ask a condition: its verdict, and the traceback if it failed."""
        run = check.run
        try:
            cond = conditions.load(run.conds[check.index])
            assert isinstance(cond, BoundOwn)
            names = {**run.args, "run_id": run.run_id, "job_id": run.job_id}
            return extensions.check(cond, names, self.runs), None
        except Exception as error:  # whatever a user's class raises is an error of the run
            log.warning("condition of run %s failed: %s", run.run_id, error)
            text = f"{type(error).__name__}: {error}" if not isinstance(error, BadRequest) else str(error)
            return Verdict(False, text, move=State.ERROR), traceback.format_exc()

    def runs(
        self, job_id: str, args: Args | None = None, states: Iterable[str] | None = None
    ) -> list[Mapping[str, Any]]:
        """The runs of a job, by number: with exactly `args`, in one of `states`, if these are given."""
        wanted = None if states is None else frozenset(map(State, states))
        ahead = [
            run
            for run in self._expected(job_id)
            if (args is None or dict(run.args) == dict(args)) and (wanted is None or run.state in wanted)
        ]
        with self._store.read() as reader:
            rows = reader.runs(job_id=job_id, exact_args=args, states=wanted, limit=FOUND, newest=True)
        found = {run.run_id: run for run in (*ahead, *rows)}
        return [
            {
                "run_id": run.run_id,
                "job_id": run.job_id,
                "args": dict(run.args),
                "state": run.state.value,
                "times": dict(run.times),
            }
            for run in sorted(found.values(), key=lambda run: run.number)
        ]
