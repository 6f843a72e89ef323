"""Processes of runs that were given up, found again at their agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from doubles import FakeAgents, FakeHost, ended, killed, result

from apsislib.errors import Unavailable
from apsislib.runs import Remark, Run
from apsislib.states import State
from apsislib.wire import FdHead
from programs import noop, procstar
from programs.base import Settings
from programs.late import Truths

PROC = "r7.5c1f"
NOW = 1_700_000_000.0  # by the clock of FakeHost
SETTINGS = Settings(update_interval=None, output_interval=None)


class Host(FakeHost):
    """Works at once, and what has to be done in the end again when it is told to."""

    def __init__(self, agents: Any) -> None:
        super().__init__(agents)
        self.readable = True
        self.owed: list[Callable[[], None]] = []

    def spawn(self, work: Callable[[], None]) -> None:
        work()

    def insist(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Unavailable:
            self.owed.append(work)

    def again(self) -> None:
        owed, self.owed = self.owed, []
        for work in owed:
            self.insist(work)

    def stored(self, run_id: str) -> Run | None:
        self._read()
        return super().stored(run_id)

    def offer(self, run_id: str, state: State, message: str | None, meta: Any) -> None:
        self._read()
        super().offer(run_id, state, message, meta)

    def _read(self) -> None:
        if not self.readable:
            raise Unavailable("no disk")


class Story:
    """Run r7 was given up; what its program is found to do on agent `A`.

    `ending`: `timeout` and `stop` of the program; `times`: of the run.
    """

    def __init__(self, ending: Any = None, times: Mapping[str, float] | None = None, **given_up: Any) -> None:
        self.agents = FakeAgents()
        self.host = Host(self.agents)
        program = procstar.parse({"argv": ["/bin/work"], **(ending or {})}, SETTINGS).bind(lambda text: text)
        meta = {"given_up": {"proc_id": PROC, "conn_id": "A", "state": "running", **given_up}}
        run = Run("r7", "job", {}, State.ERROR, times=times or {}, program=program.to_json(), meta=meta)
        self.host.add(run)
        self.host.outputs["r7"] = bytearray(b"before ")
        self.truths = Truths(lambda json: procstar.load(json, SETTINGS), self.host, self.agents)

    def found(self, res: Any = None, proc_id: str = PROC) -> bool:
        """Whether it was taken for one of ours; then a hand has looked."""
        return self.truths.claimed("A", proc_id, res or result())

    def sent(self, seconds: int) -> list[tuple[int, int]]:
        """The signals that it is sent from its agent's return on: (after so many seconds, number)."""
        watcher, clock = self.agents.watchers[PROC], self.host.clock
        watcher.registered(True)
        sent = []
        for second in range(seconds):
            watcher.poll(clock.monotonic())
            sent += [(second, m["signum"]) for m in self.agents.take("ProcSignalRequest")]
            clock.advance(1.0)
        return sent

    def remarks(self) -> list[str]:
        return [remark.message for remark in self.host.of(Remark)]


def test_its_output_is_stored_to_the_end_and_its_end_offered() -> None:
    story = Story()
    assert story.found()
    assert story.host.of(Remark)[0].message == "agent A is back and still runs the program (pid 4133)"
    watcher = story.agents.watchers[PROC]
    watcher.registered(True)
    assert story.agents.take("ProcResultRequest")
    watcher.result(ended(3, length=12))
    watcher.head(FdHead(PROC, "stdout", 7, 12, None, 5))
    watcher.data(b"after")
    watcher.end()
    assert bytes(story.host.outputs["r7"]) == b"before after"
    assert story.host.offers == [("r7", State.FAILURE, "exit code 3")]


def test_a_program_that_was_to_end_is_told_so_again() -> None:
    story = Story(state="stopping", signals=["SIGTERM", "SIGKILL"])
    story.found()
    story.agents.take()
    story.agents.watchers[PROC].registered(True)
    assert [m["signum"] for m in story.agents.take("ProcSignalRequest")] == [9]


@pytest.mark.parametrize(
    ("given_up", "sent"),
    [
        ({"state": "starting", "stop_asked": True}, [(0, 15), (60, 9)]),
        ({"state": "stopping", "signals": ["SIGTERM"], "kill_at": NOW + 20}, [(0, 15), (20, 9)]),
        ({"signals": ["SIGINT"], "timed_out": 5.0, "kill_at": NOW - 20}, [(0, 2), (0, 9)]),
        ({"state": "stopping", "signals": ["SIGTERM"]}, [(0, 15)]),  # its grace is never over
        ({"signals": ["SIGTERM"]}, []),
    ],
)
def test_what_was_to_end_it_ends_it_when_it_is_back(given_up: Any, sent: Any) -> None:
    story = Story(**given_up)
    story.found()
    assert story.sent(90) == sent


LIMITED = {"timeout": {"duration": 100, "signal": "SIGINT"}, "stop": {"grace_period": 20}}


@pytest.mark.parametrize(
    ("times", "given_up", "sent"),
    [
        ({"running": NOW - 60}, {}, [(40, 2), (60, 9)]),
        ({"running": NOW - 500}, {}, [(0, 2), (20, 9)]),
        ({"running": NOW - 60}, {"stepped": -30.0}, [(10, 2), (30, 9)]),
        (
            {},
            {"state": "starting"},
            [(10, 2), (30, 9)],
        ),  # as its agent says that it has been running for 90 s
        ({"running": NOW - 60, "stop": NOW + 15}, {}, [(15, 15), (35, 9)]),  # which voids the timeout
        ({"running": NOW, "stop": NOW - 15}, {}, [(0, 15), (20, 9)]),
        ({"running": NOW - 60, "stop": NOW + 45}, {}, [(40, 2), (45, 15), (65, 9)]),
        ({"running": NOW - 500}, {"signals": ["SIGINT"], "timed_out": 100.0}, [(0, 2)]),
        ({"running": NOW - 500, "stop": NOW}, {"state": "stopping", "signals": ["SIGTERM"]}, [(0, 15)]),
    ],
)
def test_its_timeout_and_its_stop_time_end_it_as_they_would_a_live_run(
    times: Any, given_up: Any, sent: Any
) -> None:
    story = Story(LIMITED, times, **given_up)
    story.found(result(times={"elapsed": 90.0}))
    assert story.sent(90) == sent


def test_a_late_verdict_says_that_it_was_a_timeout() -> None:
    story = Story(LIMITED, {"running": NOW - 500})
    story.found()
    assert story.sent(21) == [(0, 2), (20, 9)]
    assert story.remarks()[1:] == ["timeout after 100 s", "sending SIGINT", "sending SIGKILL"]
    watcher = story.agents.watchers[PROC]
    watcher.result(killed(9, "SIGKILL", length=7))
    watcher.end()  # of what was asked for before
    assert story.host.offers == [("r7", State.FAILURE, "killed by SIGKILL (timeout after 100 s)")]


def test_a_program_that_has_ended_meanwhile_is_sent_nothing() -> None:
    story = Story(LIMITED, {"running": NOW - 500})
    story.found(ended(0, length=7))
    assert story.sent(5) == []
    watcher = story.agents.watchers[PROC]
    watcher.result(ended(0, length=7))
    watcher.end()
    assert story.host.offers == [("r7", State.SUCCESS, None)]


def test_a_program_that_is_followed_is_ended_as_soon_as_its_run_says_so() -> None:
    story = Story(LIMITED, {"running": NOW})
    story.found()
    assert story.sent(5) == []
    story.agents.unwatch(PROC)  # as Procstar.forget does, which has the agent list it again
    was = story.host.runs["r7"].meta["given_up"]
    order = {"state": "stopping", "signals": ["SIGTERM"], "kill_at": NOW + 25}
    story.host.change("r7", meta={"given_up": {**was, **order}})
    story.found()
    assert story.remarks()[-1] == "agent A runs the program (pid 4133), which is to end: sending SIGTERM"
    assert story.sent(90) == [(0, 15), (20, 9)]


def test_an_order_that_comes_while_it_is_looked_up_is_not_missed() -> None:
    story = Story()
    load = story.truths._load

    def slow(json: Any) -> Any:
        meta = story.host.runs["r7"].meta
        story.host.change("r7", meta={"given_up": {**meta["given_up"], "state": "stopping"}})
        return load(json)

    story.truths._load = slow
    story.found()
    assert story.agents.abandoned == [PROC] and story.agents.watchers == {}
    story.found()  # which abandon() has led to
    assert story.agents.abandoned == [PROC] and PROC in story.agents.watchers


def test_a_process_that_can_not_be_followed_is_not_asked_about_for_ever(monkeypatch: Any) -> None:
    story = Story()

    def unreadable(json: Any) -> Any:
        raise ValueError("of another release")

    monkeypatch.setattr(story.truths, "_load", unreadable)
    with pytest.raises(ValueError):
        story.found()  # it is tried again then
    story.truths._follow("r7", PROC)
    assert story.agents.forgotten == [] and story.agents.watchers == {}


def test_an_agent_that_is_lost_again_is_waited_for_by_nobody() -> None:
    story = Story()
    story.found()
    story.agents.watchers[PROC].lost()
    assert story.agents.watchers == {}
    assert story.found()  # as it was this time


def test_what_is_not_the_process_of_such_a_run_is_left_to_its_fate() -> None:
    story = Story()
    assert not story.found(proc_id="b777")
    assert story.found(proc_id="r8.5c1f") and story.found(proc_id="r7.other")
    assert story.agents.forgotten == ["r8.5c1f", "r7.other"]
    story.host.change("r7", meta={**story.host.runs["r7"].meta, "late_verdict": {"state": "failure"}})
    assert story.found() and story.agents.forgotten[-1] == PROC
    other = Story()
    other.truths = Truths(lambda json: noop.load({}, SETTINGS), other.host, other.agents)
    assert other.found() and other.agents.forgotten == [PROC]


def test_a_run_that_cannot_be_read_is_looked_up_again_until_it_can() -> None:
    story = Story()
    story.host.readable = False
    assert story.found() and story.found()  # it was cut off, and is back again
    story.host.again()
    assert story.agents.forgotten == [] and story.agents.watchers == {}
    story.host.readable = True
    story.host.again()
    assert [remark.message for remark in story.host.of(Remark)] == [
        "agent A is back and still runs the program (pid 4133)"
    ]
    assert PROC in story.agents.watchers and story.host.owed == []


def test_an_end_that_cannot_be_offered_is_offered_later() -> None:
    story = Story()
    story.found()
    watcher = story.agents.watchers[PROC]
    watcher.registered(True)
    story.host.readable = False
    watcher.result(ended(3, length=7))
    assert story.host.offers == []
    story.host.readable = True
    story.host.again()
    assert story.host.offers == [("r7", State.FAILURE, "exit code 3")]


def test_the_record_of_a_live_run_is_never_deleted_though_nobody_watches_it_yet() -> None:
    story = Story()
    story.host.change("r7", state=State.RUNNING, run_state={"proc_id": PROC, "conn_id": "A"}, meta={})
    assert story.found()
    assert story.agents.forgotten == [] and story.agents.watchers == {}
    assert story.found(proc_id="r7.other") and story.agents.forgotten == ["r7.other"]
