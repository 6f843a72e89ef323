"""The life of tasks: each is launched for one run, watched, and stopped when nothing needs it any more.

What must outlive the server is on disk: that the run is starting, before RunTask is called; the task's
ARN, before anything relies on it. In between the clientToken, of installation and run, makes a second
RunTask answer with the task of the first. What slips through all the same (the run was skipped while
the server was down, say) is found by the sweep, as every task is tagged with installation and run.

Programs call from the thread of programs, the thread of calls.py looks after what is due, and hands
bring AWS's answers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Any

from apsislib.config.keys import Ecs as Config
from apsislib.runs import Finished, Json, Launched, Remark, Run
from apsislib.states import FINISHED, State
from programs.base import Host, lasting
from programs.ecs import request
from programs.ecs.aws import Aws, AwsError, refused
from programs.ecs.calls import Call, Calls
from programs.ecs.sweep import BATCH, Sweep
from programs.ecs.task import Task, is_connected, is_waiting
from programs.ecs.told import ENDED, is_over, last_lines, late, outcome

log = logging.getLogger(__name__)

HOT = 2.0  # seconds between looks at tasks that are starting, stopping, or whose agent is away
COLD = 10.0  # and at all others
IDLE = 3600.0
LEAVE = 120.0  # seconds for a task to end by itself once its run has ended
AGAIN = 60.0  # seconds after which a stop that failed is tried again
# Seconds without a word of a task before it counts as gone: for a while after RunTask not all of AWS
# knows it, and an hour after its end none.
GONE = 60.0
KNOCK = 90.0  # seconds that an agent has after a restart, come what may: it knocks once a minute
LAST_WORDS = 3  # looks at a stopped task whose agent is still connected: its results may be on their way
TOKEN = 12 * 3600.0  # seconds for which a clientToken is trusted; AWS keeps it for twice as long


class Tasks:
    """All tasks of a server. Made in every process that reads jobs; only start() makes it do anything."""

    _host: Host  # from start() on, as _sweep
    _sweep: Sweep

    def __init__(self, config: Config) -> None:
        self.config = config
        self._aws = Aws(config.region, config.cluster_name)
        self._lock = Lock()  # protects _tasks and what its values say of it; leaf
        self._tasks: dict[str, Task] = {}  # by run ID
        self._installation = ""
        self._calls: Calls | None = None
        # The thread of calls.py only, save _looking.
        self._next_look = self._next_full = 0.0
        self._next_sweep = 0.0 if config.sweep is not None else math.inf
        self._looking = 0  # DescribeTasks under way; under the lock
        self._complaint = ""  # the latest failure of DescribeTasks, so that it is logged once

    def __reduce__(self) -> tuple[Any, ...]:
        """Jobs are parsed in another process than they run in; tasks stay where they are."""
        return Tasks, (self.config,)

    def start(self, host: Host, installation: str) -> None:
        """Begin. Programs of earlier runs have been told to look for their tasks."""
        self._host, self._installation = host, installation
        self._calls = Calls(host.clock, host.spawn, self._tick)
        self._sweep = Sweep(self._aws, self._calls, host, installation, self._follows)
        self._calls.start()

    def close(self, timeout: float | None) -> list[str]:
        """Call AWS no more; tasks go on. Answers the names of threads still alive."""
        return [] if self._calls is None else self._calls.stop(timeout)

    # -- what programs ask -------------------------------------------------------------------------

    def launch(self, run: Run, program: Any, host: Host) -> None:
        """The run is starting: make its task, unless it has one; then wait for the agent in it."""
        arn, limit = (run.run_state or {}).get("task_arn"), self.config.start_timeout
        with self._lock:
            task = self._tasks.get(run.run_id)
            passed = 0.0
            if task is None:
                task = self._tasks[run.run_id] = Task(run.run_id, program, arn)
                passed = max(0.0, host.clock.wall() - run.times.get("starting", math.inf))
            if limit is not None:
                task.deadline = host.clock.boot() + max(limit - passed, min(limit, KNOCK))
        if arn is not None:
            program.at_agent(run).launch(run, host)
        self._wake()

    def adopt(self, run: Run, program: Any, host: Host) -> None:
        """After a restart: the run is at its agent, or was about to be."""
        arn = (run.run_state or {}).get("task_arn")
        if arn is not None:
            with self._lock:
                self._tasks[run.run_id] = Task(run.run_id, program, arn)
            self._wake()

    def kill(self, run: Run, host: Host, after: float) -> None:
        """SIGKILL was sent. Stop the task, after some seconds if its agent is there to kill the program."""
        with self._lock:
            task = self._tasks.get(run.run_id)
            if task is not None:
                task.kill_at = host.clock.boot() + (after if is_connected(run, host) else 0.0)
        self._wake()

    def release(self, run: Run, host: Host) -> None:
        """The run has ended: see that its task does."""
        arn = (run.run_state or {}).get("task_arn")
        with self._lock:
            task = self._tasks.get(run.run_id)
            if task is None and arn is not None:
                task = self._tasks[run.run_id] = Task(run.run_id, None, arn)
            if task is None:
                return
            task.released = True
            task.arn = task.arn or arn
            # The agent of a program that has ended leaves by itself; of any other it is better not awaited.
            ended = run.state in (State.SUCCESS, State.FAILURE)
            task.leave_by = host.clock.boot() + (LEAVE if ended else 0.0)
        self._wake()

    def _wake(self) -> None:
        if self._calls is not None:
            self._calls.wake()

    # -- what is due (apsis-ecs) -------------------------------------------------------------------

    def _tick(self) -> float:
        """Do what is due; the seconds until more is."""
        now = self._host.clock.boot()
        with self._lock:
            tasks = list(self._tasks.values())
        nap = COLD if tasks else IDLE
        for task in tasks:
            self._look_after(task, now)
            nap = min([nap, *(t - now for t in (task.deadline, task.kill_at, task.leave_by) if t > now)])
        if tasks and now >= self._next_look:
            self._look(tasks, now)
        if now >= self._next_sweep:
            self._next_sweep = now + (self.config.sweep or math.inf)
            self._sweep.start()
        due = self._next_look if tasks else math.inf
        return max(0.0, min(nap, due - now, self._next_sweep - now))

    def _look_after(self, task: Task, now: float) -> None:
        if task.released:
            if task.status in ENDED or task.arn is None and not task.asked:
                self._drop(task)
            elif task.arn is not None and now >= task.leave_by and not task.stopping:
                self._stop(task, "its run has ended")
            return
        run = self._run(task)
        if task.arn is None and not task.asked and not task.over and is_waiting(run):
            self._ask(task, run)
        if now >= task.kill_at and not task.stopping and not task.over:
            task.killed = True
            self._stop(task, "its program did not end within the grace period")
        if now >= task.deadline and not task.over and is_waiting(run):
            task.over = True
            limit = self.config.start_timeout or 0.0
            self._end(task, State.ERROR, late(task.run_id, task.arn, task.status, task.trouble, limit))

    def _run(self, task: Task) -> Run | None:
        return self._host.run(task.run_id)

    def _remark(self, task: Task, text: str) -> None:
        if not task.released:
            self._host.report(task.run_id, Remark(text))

    def _follows(self, run_id: str, arn: str) -> bool:
        with self._lock:
            task = self._tasks.get(run_id)
            return task is not None and task.arn in (None, arn)

    def _drop(self, task: Task) -> None:
        with self._lock:
            if self._tasks.get(task.run_id) is task:
                del self._tasks[task.run_id]

    def _call(self, name: str, do: Callable[[], Any], done: Callable[[Any], None], **more: Any) -> None:
        assert self._calls is not None
        self._calls.put(Call(name, do, done, **more))

    # -- launching ---------------------------------------------------------------------------------

    def _ask(self, task: Task, run: Run | None) -> None:
        assert run is not None
        task.asked = True
        if self._host.clock.wall() - run.times.get("starting", math.inf) > TOKEN:
            self._find(task, anew=True)
        else:
            self._run_task(task)

    def _run_task(self, task: Task) -> None:
        def wanted() -> bool:
            if not task.released and not task.over and is_waiting(self._run(task)):
                return True
            task.asked = False
            return False

        def retrying(error: AwsError, attempt: int) -> None:
            task.trouble = str(error)
            if attempt & (attempt - 1) == 0:  # 1, 2, 4, ...: it may go on for long
                self._remark(task, f"{error}; trying again")

        def done(answer: Json) -> None:
            if answer.get("tasks"):
                self._made(task, str(answer["tasks"][0]["taskArn"]))
            else:
                self._fail(task, refused("RunTask", list(answer.get("failures") or ())))

        def failed(error: AwsError) -> None:
            if error.code == "ConflictException" and error.resources:
                self._made(task, error.resources[0])  # made before, when the server's file said otherwise
            elif error.code == "ConflictException":
                self._find(task, anew=False)
            else:
                self._fail(task, str(error))

        self._call(
            "RunTask",
            lambda: self._aws.run_task(
                request.run_task(self.config, self._installation, task.run_id, task.program)
            ),
            done,
            failed=failed,
            wanted=wanted,
            retrying=retrying,
            launch=True,
            attempts=math.inf,  # for as long as the run may take to start
        )

    def _find(self, task: Task, anew: bool) -> None:
        """Look whether the run has a task already; if not, make one, or give up."""

        def done(arn: str | None) -> None:
            if arn is not None:
                self._made(task, arn)
            elif anew:
                self._run_task(task)
            else:
                self._fail(task, "RunTask: the task was made before, and is gone: the program may have run")

        self._call(
            "ListTasks",
            lambda: self._sweep.find(task.run_id),
            done,
            failed=lambda error: self._fail(task, str(error)),
        )

    def _made(self, task: Task, arn: str) -> None:
        """(a hand) AWS has made the task."""
        with self._lock:
            task.arn, task.asked = arn, False
        run = self._run(task)
        if task.released or run is None or not is_waiting(run):
            return  # release() has been called, or will be
        log.info("run %s has ECS task %s", task.run_id, arn)
        shown = request.shown(self.config, task.program, arn)
        self._host.report(task.run_id, Launched(lasting(run) | {"task_arn": arn}, {"aws_ecs": shown}))
        self._remark(task, f"launched as ECS task {request.task_id(arn)}")
        run = self._run(task)
        if run is not None and is_waiting(run):
            task.program.at_agent(run).launch(run, self._host)

    def _fail(self, task: Task, text: str) -> None:
        """(a hand) There is no task, and will be none."""
        task.asked, task.over = False, True
        log.warning("run %s: %s", task.run_id, text)
        self._host.report(task.run_id, Finished(State.ERROR, text))

    # -- watching ----------------------------------------------------------------------------------

    def _look(self, tasks: Iterable[Task], now: float) -> None:
        self._next_look = now + HOT
        if self._looking:
            return
        if full := now >= self._next_full:
            self._next_full = now + COLD
        looked = {t.arn: t for t in tasks if t.arn is not None and (full or self._is_hot(t))}
        arns = [arn for arn in looked if arn is not None]
        for at in range(0, len(arns), BATCH):
            self._describe({arn: looked[arn] for arn in arns[at : at + BATCH]})

    def _is_hot(self, task: Task) -> bool:
        if task.released:
            return False
        run = self._run(task)
        return task.killed or is_waiting(run) or (run is not None and not is_connected(run, self._host))

    def _describe(self, tasks: Mapping[str, Task]) -> None:
        with self._lock:
            self._looking += 1

        def finished() -> None:
            with self._lock:
                self._looking -= 1

        def done(answer: Json) -> None:
            finished()
            self._complaint = ""
            found = {str(described["taskArn"]): described for described in answer.get("tasks") or ()}
            for arn, task in tasks.items():
                self._seen(task, found.get(arn))

        def failed(error: AwsError) -> None:
            finished()
            self._next_look = self._next_full
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("ECS tasks can't be watched: %s", error)

        self._call("DescribeTasks", lambda: self._aws.describe(list(tasks)), done, failed=failed, attempts=1)

    def _seen(self, task: Task, described: Json | None) -> None:
        """(a hand) How the task is; None: ECS does not know it."""
        if task.over:
            task.status = str((described or {}).get("lastStatus") or task.status)
            return
        if described is None:
            now = self._host.clock.boot()
            task.missing = min(task.missing, now)
            if now < task.missing + GONE:
                return
            described = {"lastStatus": "STOPPED", "stoppedReason": "ECS knows it no more"}
        task.missing = math.inf
        status = str(described.get("lastStatus") or "")
        run = self._run(task)
        if not is_over(described, task.released):
            if status != task.status and is_waiting(run):
                self._remark(task, f"ECS task is {status}")
            task.status = status
            return
        if task.released or run is None or run.state in FINISHED:
            task.status = "STOPPED"
            return
        task.looks += 1
        if is_connected(run, self._host) and task.looks < LAST_WORDS:
            return
        task.status, task.over = "STOPPED", True
        state, text = outcome(described, run, str(task.arn), task.killed)
        self._end(task, state, text)

    # -- ending ------------------------------------------------------------------------------------

    def _end(self, task: Task, state: State, text: str) -> None:
        """End the run; with the last lines of the task's own log if its agent never came."""
        arn = task.arn
        run = self._run(task)
        if arn is None or run is None or not is_waiting(run):
            self._host.report(task.run_id, Finished(state, text))
            return

        def done(answer: tuple[str, bytes | None]) -> None:
            stream, output = answer
            meta = {"aws_ecs": request.shown(self.config, task.program, arn, stream)}
            end(Finished(state, text, meta, output))

        def end(report: Finished) -> None:
            if task.status == "STOPPED" or is_waiting(self._run(task)):
                self._host.report(task.run_id, report)
            else:
                task.over = False  # its agent has come after all

        def failed(error: AwsError) -> None:
            end(Finished(state, f"{text} (its log can't be read: {error})"))

        self._call(
            "GetLogEvents", lambda: last_lines(self._aws, self.config, arn), done, failed=failed, attempts=2
        )

    def _stop(self, task: Task, why: str) -> None:
        """Have ECS stop the task; where the run goes on, its end is seen when it comes."""
        arn = str(task.arn)
        task.stopping = True
        log.warning("stopping ECS task %s of run %s: %s", arn, task.run_id, why)
        self._remark(task, f"stopping its ECS task: {why}")

        def done(_: None) -> None:
            if task.released:
                self._drop(task)

        def failed(error: AwsError) -> None:
            log.error("ECS task %s of run %s goes on, it can't be stopped: %s", arn, task.run_id, error)
            self._remark(task, f"its ECS task could not be stopped: {error}")
            with self._lock:
                task.stopping = False
                task.kill_at = task.leave_by = self._host.clock.boot() + AGAIN

        self._call("StopTask", lambda: self._aws.stop(arn, f"apsis: {why}"), done, failed=failed)
