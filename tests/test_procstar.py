"""procstar programs: what is sent to an agent, and what becomes of a run by what the agent says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from doubles import FakeAgents, FakeHost, ended, killed, result
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_agent import RawAgent

from agent_server import AgentServer
from apsislib.clock import Deadline, SimClock, WallClock
from apsislib.errors import FieldError, Unavailable
from apsislib.ports import Port
from apsislib.runs import Back, Finished, Lost, Placed, Remark, Run, Running, Unplaced, Update
from apsislib.states import State
from apsislib.wire import FdHead
from programs import procstar
from programs.base import OutputLimit, Settings
from programs.process import Process
from programs.procstar import Procstar

QUIET = Settings(update_interval=None, output_interval=None)


class Story:
    """One run on the agent `A`, and what happens to it."""

    def __init__(self, settings: Settings = QUIET, **fields: Any) -> None:
        self.clock = SimClock(wall=1_700_000_000.0)
        self.agents = FakeAgents()
        self.host = FakeHost(self.agents, self.clock)
        mapping = {"argv": ["/bin/work"], **fields}
        self.program = procstar.parse(mapping, settings).bind(lambda text: text)
        self.host.add(Run("r1", "job", {}, State.STARTING, run_state={"proc_id": "p"}))
        self._due: float | None = None

    @property
    def run(self) -> Run:
        return self.host.runs["r1"]

    @property
    def watcher(self) -> Process:
        return self.agents.watchers["p"]

    def start(self) -> Story:
        self.program.launch(self.run, self.host)
        self.program.send(self.run, self.host)
        return self

    def running(self, length: int = 0) -> Story:
        self.start()
        self.watcher.result(result(length=length))
        self.agents.take()
        return self

    def restart(self) -> Story:
        """The server forgets everything but what is on disk."""
        self.agents.watchers.clear()
        self.agents.take()
        self.host.reports.clear()
        self.program.connect(self.run, self.host)
        return self

    def pass_time(self, seconds: float) -> list[dict[str, Any]]:
        """What is sent meanwhile."""
        self.clock.advance(seconds)
        self.watcher.poll(self.clock.monotonic())
        return self.agents.take()

    def data(self, start: int, *pieces: bytes) -> None:
        size = sum(map(len, pieces))
        self.watcher.head(FdHead("p", "stdout", start, start + size, None, size))
        for piece in pieces:
            self.watcher.data(piece)
        self.watcher.end()

    def asked(self) -> tuple[int, int | None] | None:
        """The range of output that was asked for since the last look."""
        sent = self.agents.take("ProcFdDataRequest")
        assert len(sent) <= 1
        return (sent[0]["start"], sent[0]["stop"]) if sent else None

    @property
    def output(self) -> bytes:
        return bytes(self.host.outputs.get("r1", b""))

    @property
    def verdict(self) -> tuple[State, str | None]:
        finished = self.host.of(Finished)
        assert len(finished) == 1, self.host.reports
        return finished[0].state, finished[0].message

    @property
    def remarks(self) -> str:
        return "\n".join(remark.message for remark in self.host.of(Remark))

    @property
    def open(self) -> bool:
        return not self.host.of(Finished)


# -- the start -------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_choice_of_agent_is_committed():
    story = Story()
    story.program.launch(story.run, story.host)
    assert story.agents.sent == []
    assert story.host.of(Placed) == [Placed({"proc_id": "p", "conn_id": "A", "agent": "A's first"})]
    story.program.send(story.run, story.host)
    capture = {"mode": "tempfile", "encoding": None, "attached": False}
    spec = {
        "argv": ["/bin/work"],
        "env": {"inherit": True, "vars": {"APSIS_RUN_ID": "r1", "APSIS_PROC_ID": "p"}},
        "fds": [["stdout", {"capture": capture}], ["stderr", {"dup": {"fd": 1}}]],
    }
    assert story.agents.take() == [{"type": "ProcStartRequest", "specs": {"p": spec}}]
    story.watcher.result(result())
    running = story.host.of(Running)[0]
    assert running.run_state == {"proc_id": "p", "conn_id": "A"}
    assert running.meta is not None
    assert running.meta["proc_stat"]["pid"] == 4133
    assert running.meta["procstar_conn"]["conn_id"] == "A"
    assert running.meta["procstar_agent"]["hostname"] == "node1"


def test_a_sudo_user_and_a_memory_limit_are_in_the_specification():
    story = Story(sudo_user="app", resources={"mem_max_gb": 1.5}).start()
    spec = story.agents.sent[0]["specs"]["p"]
    sudo = ["/usr/bin/sudo", "--preserve-env", "--set-home", "--non-interactive", "--user", "app", "--"]
    assert spec["argv"] == [*sudo, "/bin/work"]
    limits = spec["systemd_properties"]["slice"]
    assert (limits["memory_max"], limits["memory_swap_max"]) == (1_500_000_000, 0)


def test_what_would_end_an_agent_is_not_sent():
    def bind(*argv: str) -> Procstar:
        return procstar.parse({"argv": list(argv)}, QUIET).bind(lambda text: text.replace("{{ x }}", "a)"))

    with pytest.raises(FieldError, match="symbolic link"):
        procstar.parse({"argv": ["/opt/a) b"]}, QUIET)
    with pytest.raises(FieldError, match="symbolic link"):
        bind("/opt/{{ x }}")
    assert bind("/opt/(a)/run", "(b)").argv == ("/opt/(a)/run", "(b)")
    for argv in (["x" * 9_000_000], [""] * 1_100_000):  # a frame of 16 MiB ends a connection
        with pytest.raises(FieldError, match="bytes of arguments"):
            bind("/bin/echo", *argv)


def test_without_an_agent_the_run_waits_and_says_so_and_is_placed_when_one_comes():
    story = Story()
    story.agents.here = False
    story.program.launch(story.run, story.host)
    assert "group default" in story.remarks
    story.agents.here = True
    story.agents.wanting[0]()
    assert story.host.of(Placed)


def test_a_run_that_ended_while_it_waited_for_an_agent_is_not_placed():
    story = Story()
    story.agents.here = False
    story.program.launch(story.run, story.host)
    story.agents.here = True
    story.host.runs.clear()
    story.agents.wanting[0]()
    assert not story.host.of(Placed)


def test_a_start_timeout_of_zero_means_at_once():
    story = Story(replace(QUIET, start_timeout=0.0))
    story.agents.here = False
    story.program.launch(story.run, story.host)
    assert story.verdict == (State.ERROR, "no connected agent in group: default")


def test_without_an_agent_server_the_error_names_the_key():
    story = Story()
    story.host.agents = None
    story.program.launch(story.run, story.host)
    assert "procstar.agent.enable" in str(story.verdict[1])


def test_a_start_that_was_provably_not_written_goes_elsewhere():
    story = Story()
    story.program.launch(story.run, story.host)
    story.agents.here = False
    story.program.send(story.run, story.host)
    assert story.host.of(Unplaced)
    assert not story.host.of(Lost)


@pytest.mark.parametrize("state", ["idling", "done"])
def test_an_agent_that_is_shutting_down_is_left_alone_and_the_start_goes_elsewhere(state):
    story = Story().start()
    story.watcher.error({"type": "ProcStartRequest", "specs": {"p": {}}}, f"agent shutting down: {state}")
    assert story.host.of(Unplaced)
    assert story.agents.drained == ["A"]
    assert story.agents.watchers == {}


def test_a_start_that_the_agent_refuses_is_an_error():
    story = Story().start()
    story.watcher.error({"type": "ProcStartRequest", "specs": {"p": {}}}, "error with systemd: no bus")
    state, message = story.verdict
    assert state is State.ERROR
    assert "error with systemd: no bus" in str(message)


def test_a_start_that_the_agent_drops_in_silence_is_asked_about_and_becomes_an_error():
    story = Story(resources={"mem_max_gb": 1}).start()
    story.agents.take()
    assert story.pass_time(29) == []
    assert story.pass_time(2) == [{"type": "ProcResultRequest", "proc_id": "p"}]
    story.watcher.unknown()
    state, message = story.verdict
    assert state is State.ERROR
    assert "too old or refused the specification" in str(message)
    assert "0.5.0" in str(message)


def test_a_start_lost_with_its_connection_is_sent_again_to_the_same_agent():
    story = Story().start()
    first = story.agents.take()
    story.watcher.lost()
    assert story.host.of(Lost) == [Lost("A")]
    story.watcher.registered(listed=False)
    assert story.agents.take() == first
    assert story.host.of(Back) == [Back("A")]
    story.watcher.result(result())
    assert story.run.state is State.RUNNING


@pytest.mark.parametrize("restarted", [False, True])
def test_a_start_lost_with_its_agents_process_is_not_sent_to_the_next_one(restarted):
    """What the older process of the same conn_id had started may well run."""
    story = Story().start()
    story.agents.take()
    if restarted:
        story.restart()
    else:
        story.watcher.lost()
    story.agents.life = "A's second"
    story.watcher.registered(listed=False)
    assert story.agents.take("ProcStartRequest") == []
    state, message = story.verdict
    assert state is State.ERROR and "the program may have started" in str(message)


def test_a_start_that_arrived_before_its_connection_was_lost_is_not_sent_again():
    story = Story().start()
    story.agents.take()
    story.watcher.lost()
    story.watcher.registered(listed=True)
    assert story.agents.take("ProcStartRequest") == []


class Hasty(FakeAgents):
    """Has run the program before the request to do so has returned."""

    def send(self, conn_id: str, message: Any, fate: Any = None) -> bool:
        sent = super().send(conn_id, message, fate)
        if message["type"] == "ProcStartRequest":
            self.watchers["p"].result(ended(0))
        return sent


def test_an_answer_that_comes_before_the_start_has_returned_is_taken():
    story = Story()
    story.agents = story.host.agents = Hasty()
    story.start()
    assert story.host.of(Running)
    assert story.verdict == (State.SUCCESS, None)


def test_a_start_that_went_out_as_its_agent_shut_down_is_not_repeated_elsewhere():
    story = Story().start()
    story.watcher.gone()
    state, message = story.verdict
    assert state is State.ERROR
    assert "may have started" in str(message)
    assert not story.host.of(Unplaced)


def test_a_duplicate_start_is_asked_about():
    story = Story().start()
    story.agents.take()
    story.watcher.error({"type": "ProcStartRequest", "specs": {"p": {}}}, "duplicate proc id: p")
    assert story.agents.take() == [{"type": "ProcResultRequest", "proc_id": "p"}]
    assert story.open


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("res", "state", "message"),
    [
        (ended(0), State.SUCCESS, None),
        (ended(3), State.FAILURE, "exit code 3"),
        (ended(63), State.FAILURE, "exit code 63"),
        (killed(15, "SIGTERM"), State.FAILURE, "killed by SIGTERM"),
        (result("terminated", status=None), State.ERROR, "the agent did not tell how the process ended"),
        (result("error", errors=["execve failed: /no: x"]), State.ERROR, "execve failed: /no: x"),
        (result("error", errors=["a", "b"], status={"exit_code": 63}), State.ERROR, "a; b"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_verdicts(res, state, message, first):
    story = Story().start() if first else Story().running()
    story.watcher.result(res)
    assert story.verdict == (state, message)
    ran = not first or res["state"] != "error"
    assert bool(story.host.of(Running)) is ran
    story.watcher.result(res)  # agents push two results
    assert len(story.host.of(Finished)) == 1


@pytest.mark.parametrize("fds", [None, {}, {"stdout": None}, "absent"])
def test_a_result_may_lack_what_an_agent_could_not_find_out(fds):
    res = {key: value for key, value in ended(0, fds=fds).items() if fds != "absent" or key != "fds"}
    del res["proc_statm"]  # and cgroup_accounting, of which agents before 0.5.0 know nothing
    story = Story().start()
    story.watcher.result(res | {"proc_stat": None, "errors": None})
    assert story.verdict == (State.SUCCESS, None)
    meta = story.host.of(Finished)[0].meta
    assert meta is not None
    assert not {"proc_stat", "proc_statm", "cgroup_accounting", "rusage"} & meta.keys()


def test_figures_are_kept_as_the_agent_gave_them():
    figures = {
        "proc_stat": {"pid": 4133, "rsslim": 2**64 - 1, "sigignore": ["SIGUSR2"], "sigcatch": ["???"]},
        "rusage": {"utime": 0.5, "maxrss": 2_830_336},
    }
    story = Story().running()
    story.watcher.result(ended(0, **figures))
    meta = story.host.of(Finished)[0].meta
    assert meta is not None
    assert {key: meta[key] for key in figures} == figures


def test_a_program_without_a_slash_that_is_not_found_gets_a_hint():
    story = Story(argv=["work"]).start()
    story.watcher.result(
        result("error", errors=["execve failed: work: No such file or directory (os error 2)"])
    )
    assert "absolute path" in str(story.verdict[1])


@pytest.mark.parametrize(
    ("res", "message"),
    [
        (ended(0), "exit code 0 (timeout after 4 s)"),
        (ended(2), "exit code 2 (timeout after 4 s)"),
        (killed(9, "SIGKILL"), "killed by SIGKILL (timeout after 4 s)"),
    ],
)
def test_a_timeout_makes_every_end_a_failure_and_its_signals_are_shown(res, message):
    story = Story().running()
    res["times"]["elapsed"] = 4.01
    state = {**(story.run.run_state or {}), "timed_out": 4.0, "signals": ["SIGTERM"]}
    story.host.change("r1", run_state=state)
    story.watcher.result(res)
    assert story.verdict == (State.FAILURE, message)
    meta = story.host.of(Finished)[0].meta
    assert meta is not None
    assert meta["stop"] == {"signals": ["SIGTERM"]}


def test_a_program_killed_by_a_timeout_that_came_early_has_met_it():
    story = Story().running()
    state = {**(story.run.run_state or {}), "timed_out": 4.0, "signals": ["SIGTERM"]}
    story.host.change("r1", run_state=state)
    res = killed(15, "SIGTERM")
    res["times"]["elapsed"] = 2.0  # the server's clock was set
    story.watcher.result(res)
    assert story.verdict == (State.FAILURE, "killed by SIGTERM (timeout after 4 s)")


@pytest.mark.parametrize("elapsed", [None, "1", True, -1.0])
def test_a_timeout_counts_where_its_agent_does_not_say_how_long_the_program_ran(elapsed):
    story = Story().running()
    story.host.change("r1", run_state={**(story.run.run_state or {}), "timed_out": 4.0})
    res = ended(0)
    res["times"] = {"elapsed": elapsed} if elapsed else None
    story.watcher.result(res)
    assert story.verdict == (State.FAILURE, "exit code 0 (timeout after 4 s)")


@pytest.mark.parametrize("meanwhile", ["stored", "lost"])
def test_a_verdict_waits_until_little_of_its_output_waits_for_the_disk(meanwhile):
    story = Story().running()
    story.host.waiting = 2 << 20
    story.watcher.result(ended(0, length=4))
    story.watcher.head(FdHead("p", "stdout", 0, 4, None, 4))
    story.watcher.data(b"done")
    story.watcher.end()
    now = story.host.clock.monotonic()
    due = story.watcher.poll(now)
    assert not story.host.of(Finished) and due is not None and now < due < now + 1
    if meanwhile == "lost":
        story.watcher.lost()  # all that is wanted of the agent is here
        assert not story.host.of(Lost)
    else:
        story.host.waiting = 1 << 20
        story.host.clock.advance(1.0)
        story.watcher.poll(due)
    assert story.verdict == (State.SUCCESS, None)


def test_an_agent_that_is_lost_after_the_end_has_told_how_that_was():
    story = Story().running()
    story.watcher.result(ended(3, length=100))
    story.watcher.head(FdHead("p", "stdout", 0, 9, None, 100))
    story.watcher.data(b"in part: ")
    story.watcher.lost()
    text = "the program had ended (failure: exit code 3); 91 bytes of its output are still with agent A"
    assert story.host.of(Remark)[-1].message == text
    assert story.host.of(Lost) and not story.host.of(Finished)


def test_the_record_is_deleted_only_when_told_to_forget():
    story = Story().running()
    story.watcher.result(ended())
    assert story.agents.forgotten == []
    story.program.forget(story.run, story.host)
    assert story.agents.forgotten == ["p"]


def test_a_process_that_its_agent_no_longer_has_is_an_error():
    for tell in ("registered", "unknown", "deleted", "gone"):
        story = Story().running()
        if tell == "registered":
            story.watcher.registered(listed=False)
        else:
            getattr(story.watcher, tell)()
        state, message = story.verdict
        assert state is State.ERROR
        assert "A (node1)" in str(message)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_became_of_a_start_is_not_denied_by_who_may_not_have_got_it(restarted):
    story = Story().start()
    if restarted:
        story.restart()
    else:
        story.watcher.lost()
    story.watcher.registered(listed=True)  # as of agents that do not list what they have
    story.watcher.unknown()
    assert story.verdict == (
        State.ERROR,
        "agent A (node1) does not know the process: the program may have started",
    )


def test_a_running_program_is_followed_though_the_database_can_not_be_read_at_that_moment(monkeypatch):
    story = Story().running()
    story.data(0, b"stored ")

    def unreadable(run_id, output_id):
        raise Unavailable("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(story.host, "output_length", unreadable)
        story.restart()
    story.watcher.registered(listed=True)
    assert story.run.state is State.RUNNING
    story.watcher.result(ended(0, length=7))
    assert story.asked() == (0, 7)  # the store leaves out what it has


def test_a_known_verdict_outlives_the_record_and_the_loss_of_output_is_said():
    story = Story().running()
    story.watcher.result(ended(0, length=100))
    story.watcher.lost()
    story.watcher.registered(listed=False)
    assert story.verdict == (State.SUCCESS, None)
    assert "100 of its 100 bytes were lost" in story.remarks


# -- output ----------------------------------------------------------------------------------------


def test_output_is_pulled_while_running_without_an_end_and_afterwards_with_one():
    story = Story(replace(QUIET, output_interval=1.0)).running()
    assert story.pass_time(0.5) == []
    story.clock.advance(0.6)
    story.watcher.poll(story.clock.monotonic())
    assert story.asked() == (0, None)
    story.pass_time(5)
    assert story.asked() is None  # one question at a time
    story.data(0, b"one ", b"two ")
    story.pass_time(0)
    story.watcher.result(ended(0, length=13))
    assert story.open
    assert story.asked() == (8, 13)
    story.data(8, b"three")
    assert story.output == b"one two three"
    assert story.verdict == (State.SUCCESS, None)


def test_long_output_is_fetched_in_slices_within_its_length():
    story = Story().running()
    story.watcher.result(ended(0, length=10_000_000))
    for start in (0, 4 << 20, 8 << 20):
        stop = min(start + (4 << 20), 10_000_000)
        assert story.asked() == (start, stop)
        story.data(start, bytes(stop - start))
    assert len(story.output) == 10_000_000
    assert story.verdict == (State.SUCCESS, None)


def test_overlaps_are_cut_and_gaps_asked_for_again():
    story = Story().running()
    story.watcher.result(ended(0, length=9))
    story.data(0, b"abc")
    story.data(1, b"bcdef")
    story.data(8, b"i")
    assert story.output == b"abcdef"
    assert story.open
    story.data(6, b"ghi")
    assert story.output == b"abcdefghi"
    assert story.verdict == (State.SUCCESS, None)


def test_output_that_never_comes_does_not_hold_the_verdict_for_ever():
    story = Story().running()
    story.watcher.result(ended(0, length=9))
    for _ in range(3):
        story.data(0)
    assert story.verdict == (State.SUCCESS, None)
    assert "output is incomplete" in story.remarks
    (finished,) = story.host.of(Finished)
    assert finished.meta is not None
    assert finished.meta["output_incomplete"] == "the agent sends 0 of 9 bytes of output"


def test_output_that_grows_beyond_the_length_at_the_end_makes_no_difference():
    story = Story(replace(QUIET, output_interval=1.0)).running()
    story.clock.advance(2)
    story.watcher.poll(story.clock.monotonic())
    assert story.asked() == (0, None)
    story.watcher.result(ended(0, length=4))
    story.data(0, b"mine", b" and a descendant's")
    assert story.verdict == (State.SUCCESS, None)
    assert story.output.startswith(b"mine")
    assert story.remarks == ""


def test_an_agent_that_drops_questions_for_output_is_seen_through():
    story = Story().running()
    story.watcher.result(ended(0, length=9))
    for _ in range(3):
        story.agents.take()
        assert story.pass_time(61) == [{"type": "ProcResultRequest", "proc_id": "p"}]
        story.watcher.result(ended(0, length=9))
    assert story.verdict == (State.SUCCESS, None)
    assert "does not answer" in story.remarks


def test_a_capture_that_cannot_be_read_costs_the_output_and_not_the_run():
    story = Story().running()
    request = {"type": "ProcFdDataRequest", "proc_id": "p"}
    story.watcher.error(request, "failed to fill whole buffer")
    assert story.open
    story.watcher.result(ended(0, length=9))
    assert story.asked() is None
    assert story.verdict == (State.SUCCESS, None)
    assert "failed to fill whole buffer" in story.remarks


def test_nothing_is_asked_for_while_output_cannot_be_stored():
    story = Story().running()
    story.host.full = True
    story.watcher.result(ended(0, length=5))
    assert story.asked() is None
    story.pass_time(1)
    assert story.asked() is None
    story.host.full = False
    story.clock.advance(1)
    story.watcher.poll(story.clock.monotonic())
    assert story.asked() == (0, 5)


def test_output_beyond_its_limit_is_cut_and_marked():
    story = Story(output={"max_size": 10}).running()
    story.watcher.result(ended(0, length=12))
    assert story.asked() == (0, 10)
    story.data(0, b"0123456789")
    assert story.output == b"0123456789\n[apsis: output truncated after 10 bytes]\n"
    assert story.verdict == (State.SUCCESS, None)
    assert "truncated" in story.remarks


def test_output_of_exactly_its_limit_is_not_marked():
    story = Story(output={"max_size": "10"}).running()
    story.watcher.result(ended(0, length=10))
    story.data(0, b"0123456789")
    assert story.output == b"0123456789"


def test_a_program_that_writes_too_much_is_killed_where_that_is_configured():
    story = Story(replace(QUIET, output=OutputLimit(8, kill=True))).running()
    story.data(0, b"01234", b"56789")
    assert story.agents.take("ProcSignalRequest") == [
        {"type": "ProcSignalRequest", "proc_id": "p", "signum": 9}
    ]
    story.watcher.result(killed(9, "SIGKILL", length=500))
    assert story.verdict == (State.FAILURE, "killed by SIGKILL (output exceeds 8 bytes)")
    assert story.output.startswith(b"01234567\n[apsis")


@settings(max_examples=100)
@given(st.data())
def test_output_is_the_same_whatever_way_it_comes(data):
    """Answers overlap, repeat and leave gaps; connections are lost and the server restarted."""
    text = bytes(data.draw(st.integers(0, 255)) for _ in range(30))
    story = Story().running()
    final = False
    for _ in range(data.draw(st.integers(0, 25))):
        match data.draw(st.sampled_from(["data", "lost", "restart", "end"])):
            case "data":
                start = data.draw(st.integers(0, 30))
                stop = data.draw(st.integers(start, 30))
                story.data(start, text[start:stop])
            case "lost":
                story.watcher.lost()
                story.watcher.registered(listed=True)
            case "restart":
                story.restart()
                story.watcher.registered(listed=True)
                if final:
                    story.watcher.result(ended(0, length=30))
            case "end":
                final = True
                story.watcher.result(ended(0, length=30))
        assert text.startswith(story.output)
        if not story.open:
            break
    if story.open:
        story.watcher.result(ended(0, length=30))
        for _ in range(40):
            if not story.open:
                break
            story.data(len(story.output), text[len(story.output) :][:1])
    assert story.verdict == (State.SUCCESS, None)
    assert story.output == text or "incomplete" in story.remarks


# -- signals ---------------------------------------------------------------------------------------


def test_a_stop_signal_is_sent_and_sent_again_when_the_agent_is_back():
    story = Story().running()
    state = {**(story.run.run_state or {}), "signals": ["SIGUSR2"]}
    story.host.change("r1", state=State.STOPPING, run_state=state)
    story.program.signal(story.run, story.host, 12, stop=True)
    request = {"type": "ProcSignalRequest", "proc_id": "p", "signum": 12}
    assert story.agents.take() == [request]
    story.watcher.lost()
    story.watcher.registered(listed=True)
    assert story.agents.take("ProcSignalRequest") == [request]


def test_signals_for_an_agent_that_is_away_are_said_in_the_run_log():
    story = Story().running()
    story.agents.here = False
    story.program.signal(story.run, story.host, 10, stop=False)
    assert "SIGUSR1: agent A is not connected, it was not sent" in story.remarks
    story.program.signal(story.run, story.host, 15, stop=True)
    assert "it will be sent when the agent is back" in story.remarks


def test_signals_that_would_end_the_agent_are_not_sent():
    story = Story().running()
    story.program.signal(story.run, story.host, 34, stop=False)
    story.program.signal(story.run, story.host, 16, stop=False)
    assert story.agents.take() == []
    assert "was not sent" in story.remarks


def test_a_process_that_has_ended_is_not_signalled():
    """Another process may have its number by now."""
    story = Story(sudo_user="app").running()
    state = {**(story.run.run_state or {}), "signals": ["SIGTERM"]}
    story.host.change("r1", state=State.STOPPING, run_state=state)
    story.watcher.result(ended(0, length=9))
    story.agents.take()
    for signum in (15, 9):
        story.program.signal(story.run, story.host, signum, stop=True)
    refused = {"type": "ProcSignalRequest", "proc_id": "p", "signum": 15}
    story.watcher.error(refused, "Operation not permitted (os error 1)")
    story.watcher.lost()
    story.watcher.registered(listed=True)
    assert {message["type"] for message in story.agents.take()} == {"ProcResultRequest"}
    assert "SIGKILL was not sent: the process has ended" in story.remarks
    story.watcher.result(ended(0, length=9))
    story.pass_time(0)
    story.data(0, b"123456789")
    assert story.verdict == (State.SUCCESS, None)


def test_a_refused_signal_never_ends_the_run():
    for err in ("Operation not permitted (os error 1)", "Invalid argument (os error 22)", "no process"):
        story = Story().running()
        story.watcher.error({"type": "ProcSignalRequest", "proc_id": "p", "signum": 15}, err)
        assert story.open
        if err == "no process":
            assert story.agents.take() == [{"type": "ProcResultRequest", "proc_id": "p"}]
        else:
            assert err in story.remarks


EPERM = (
    {"type": "ProcSignalRequest", "proc_id": "p", "signum": 15},
    "Operation not permitted (os error 1)",
)
SUDO = ["/usr/bin/sudo", "--preserve-env", "--set-home", "--non-interactive", "--user", "app", "--"]


def aside(story: Story) -> tuple[Any, list[str]]:
    """Who watches the one other program that was started at the agent, and its argv."""
    (message,) = story.agents.take("ProcStartRequest")
    ((proc_id, spec),) = message["specs"].items()
    return story.agents.watchers[proc_id], spec["argv"]


def printed(text: str, code: int = 0) -> dict[str, Any]:
    return ended(code, fds={"stdout": {"type": "text", "text": text, "encoding": "utf-8"}})


def test_a_refused_signal_is_sent_through_sudo_to_the_program_below_it():
    story = Story(sudo_user="app").running()
    story.watcher.error(*EPERM)
    story.watcher.error(*EPERM)  # not twice at a time
    watcher, argv = aside(story)
    assert argv[0] == "/bin/sh" and argv[-2:] == ["4133", "sudo"]
    watcher.result(printed("4140\n"))
    watcher, argv = aside(story)
    assert argv == [*SUDO, "/bin/kill", "-s", "15", "--", "4140"]
    watcher.result(printed(""))
    assert story.remarks.endswith("SIGTERM was sent through sudo") and len(story.agents.forgotten) == 2
    story.watcher.error(*EPERM)
    assert aside(story)[1][0] == "/bin/sh"  # the next one is tried anew
    assert story.open


def test_where_an_agent_runs_no_shell_the_process_and_then_its_group_is_tried():
    story = Story(sudo_user="app").running()
    story.watcher.error(*EPERM)
    watcher, _ = aside(story)
    watcher.result(result("error", errors=["restricted executable: /bin/sh"]))
    watcher, argv = aside(story)
    assert argv == [*SUDO, "/bin/kill", "-s", "15", "--", "4133"]
    watcher.result(printed("kill: (4133) - Operation not permitted", 1))
    watcher, argv = aside(story)
    assert argv[-1] == "-4133"
    watcher.result(printed("sudo: a password is required\n", 1))
    assert "SIGTERM was not sent: kill through sudo failed: sudo: a password is required" in story.remarks
    assert story.open


@pytest.mark.parametrize("end", ["error", "lost", "gone", "unknown", "deleted"])
def test_a_kill_through_sudo_that_comes_to_nothing_is_said(end):
    story = Story(sudo_user="app").running()
    story.watcher.error(*EPERM)
    for _ in range(3):
        watcher, _ = aside(story)
        watcher.error({}, "no room") if end == "error" else getattr(watcher, end)()
    assert "SIGTERM was not sent: kill through sudo failed: " in story.remarks
    assert story.agents.take() == [] and story.open


def test_what_sudo_cannot_pass_on_is_never_sent_to_sudo_itself():
    """The program would go on, and nobody would know."""
    story = Story(sudo_user="app").running()
    for signum in (9, 19):
        story.program.signal(story.run, story.host, signum, stop=True)
        assert story.agents.take() == []
        story.watcher.poll(story.clock.monotonic())
        watcher, _ = aside(story)
        watcher.result(printed("4140 4141"))
        assert aside(story)[1][-4:] == [str(signum), "--", "4140", "4141"]
    story.program.signal(story.run, story.host, 15, stop=True)
    assert [message["type"] for message in story.agents.take()] == ["ProcSignalRequest"]


def test_a_kill_through_sudo_waits_for_an_agent_that_is_away_and_for_its_process_id():
    story = Story(sudo_user="app").running()
    story.host.change("r1", state=State.STOPPING, run_state={**story.run.run_state, "signals": ["SIGKILL"]})
    story.restart()
    story.program.signal(story.run, story.host, 9, stop=True)
    assert "SIGKILL: agent A is not connected, it will be sent when the agent is back" in story.remarks
    story.watcher.registered(listed=True)
    story.pass_time(0)
    assert story.agents.take("ProcStartRequest") == []
    story.watcher.result(result())
    assert aside(story)[1][-2:] == ["4133", "sudo"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"sudo: a password is required\n", ": sudo may not run it as app: a password is required"),
        (
            b"Sorry, user a is not allowed to x\n",
            ": sudo may not run it as app: Sorry, user a is not allowed to x",
        ),
        (b"working\nsudo: a password is required\n", ""),
        (b"", ""),
    ],
)
def test_what_sudo_does_not_permit_is_in_the_runs_message(said, why):
    story = Story(sudo_user="app").running()
    story.watcher.result(ended(1, length=len(said)))
    if said:
        story.data(0, said)
    assert story.verdict == (State.FAILURE, f"exit code 1{why}")


# -- limits ----------------------------------------------------------------------------------------

ACCOUNT = {"pids": None, "cpu_stat": {}, "memory": {"current": 0, "peak": 5_000_000, "swap_peak": None}}


def test_a_limit_that_the_agent_could_not_apply_is_said_once_in_the_run_log():
    story = Story(resources={"mem_max_gb": 1}).start()
    res = result(warnings=["memory_max=1000000000 not applied: no cgroup"])
    story.watcher.result(res)
    story.watcher.result(res)
    story.watcher.result(ended(0, warnings=res["warnings"], cgroup_accounting=None))
    assert story.remarks == "agent A (node1): memory_max=1000000000 not applied: no cgroup"
    assert story.verdict == (State.SUCCESS, None)


@pytest.mark.parametrize(
    "account", [{}, {"cgroup_accounting": None}, {"cgroup_accounting": {"memory": None}}]
)
def test_an_agent_that_gives_no_account_of_memory_leaves_the_limit_in_doubt(account):
    """Agents before 0.5.0 lack the key, those without systemd have nothing in it."""
    story = Story(resources={"mem_max_gb": 1}).running()
    assert story.remarks == ""
    story.watcher.result(ended(0, **account))
    assert (
        story.remarks
        == "agent A (node1) gave no account of memory: whether its limit was applied can't be told"
    )
    for quiet in (Story().running(), Story(resources={"mem_max_gb": 1}).running()):
        quiet.watcher.result(ended(0, cgroup_accounting=ACCOUNT))
        assert quiet.remarks == ""
    story = Story().running()
    story.watcher.result(ended(0, **account))
    assert story.remarks == ""


def test_who_was_killed_at_its_memory_limit_is_told_so():
    for gb, signals, hint in (
        (0.005, [], " (it needed more memory than its limit)"),
        (0.005, ["SIGKILL"], ""),
        (1, [], ""),
    ):
        story = Story(resources={"mem_max_gb": gb}).running()
        story.host.change("r1", run_state={**story.run.run_state, "signals": signals})
        story.watcher.result(killed(9, "SIGKILL") | {"cgroup_accounting": ACCOUNT})
        assert story.verdict == (State.FAILURE, f"killed by SIGKILL{hint}")


# -- lost, back, restarted -------------------------------------------------------------------------


def test_after_a_restart_output_goes_on_where_the_store_ends():
    story = Story().running()
    story.data(0, b"before ")
    story.restart()
    story.watcher.registered(listed=True)
    assert story.agents.take() == [{"type": "ProcResultRequest", "proc_id": "p"}]
    story.pass_time(0)
    story.watcher.result(ended(0, length=12))
    story.data(7, b"after")
    assert story.output == b"before after"
    assert story.verdict == (State.SUCCESS, None)


def test_after_a_restart_truncated_output_stays_as_it_is():
    story = Story(output={"max_size": 4}).running()
    story.data(0, b"0123456")
    stored = story.output
    story.restart()
    story.watcher.registered(listed=True)
    story.watcher.result(ended(0, length=7))
    assert story.output == stored
    assert story.verdict == (State.SUCCESS, None)


def test_after_a_restart_an_agent_that_is_not_there_is_reported_lost():
    story = Story().running()
    story.agents.here = False
    story.restart()
    assert story.host.of(Lost) == [Lost("A")]
    story.agents.here = True
    story.watcher.registered(listed=True)
    assert story.host.of(Back) == [Back("A")]


def test_after_a_restart_a_placed_start_that_the_agent_never_got_is_sent_to_it():
    story = Story().start()
    start = story.agents.take()
    story.restart()
    story.watcher.registered(listed=False)
    assert story.agents.take() == start


def test_after_a_restart_a_start_that_was_not_placed_is_placed():
    story = Story().restart()
    assert story.host.of(Placed)


def test_resource_figures_are_asked_for_and_stored_at_their_interval():
    story = Story(replace(QUIET, update_interval=10.0)).running()
    assert story.pass_time(11) == [{"type": "ProcResultRequest", "proc_id": "p"}]
    story.watcher.result(result())
    story.watcher.result(result())  # unasked
    assert len(story.host.of(Update)) == 1


def test_of_a_run_that_ended_meanwhile_the_database_decides_what_becomes_of_the_record():
    story = Story().running()
    story.watcher.lost()
    story.host.runs.clear()  # it may have been given up a moment ago: then how it ends is worth knowing
    story.watcher.registered(listed=True)
    assert story.agents.abandoned == ["p"] and story.agents.forgotten == []


# -- with a real server and a foreign agent ----------------------------------------------------------


@pytest.fixture
def server() -> Iterator[AgentServer]:
    server = AgentServer([Port("127.0.0.1", 0)], WallClock())
    server.start()
    server.restored()
    yield server
    assert server.stop(Deadline(60)) == []


def _launch(server: AgentServer, program: Procstar) -> FakeHost:
    host = FakeHost(server, WallClock())
    run = host.add(Run("r1", "job", {}, State.STARTING))
    run = host.change("r1", run_state=program.prepare(run))
    program.launch(run, host)
    host.wait(Placed)
    program.send(host.runs["r1"], host)
    return host


def _program(**fields: Any) -> Procstar:
    mapping = {"argv": ["/bin/work"], **fields}
    return procstar.parse(mapping, Settings(output_interval=0.01)).bind(lambda text: text)


def _answer(
    agent: RawAgent, proc_id: str, text: bytes, until: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Answer questions about a process whose output so far is `text`, until one comes that ends it."""
    while True:
        message = agent.receive()
        if until(message):
            return message
        if message["type"] == "ProcFdDataRequest":
            assert message["stop"] is None or message["stop"] <= len(text)
            agent.data(proc_id, message["start"], text[message["start"] : message["stop"]])
        elif message["type"] == "ProcResultRequest":
            agent.result(proc_id, result(length=len(text)))


def test_a_run_from_start_to_deletion_over_a_socket(server):
    agent = RawAgent(server.address)
    host = _launch(server, _program())
    (proc_id,) = agent.wait("ProcStartRequest")["specs"]
    agent.result(proc_id, result())
    host.wait(Running)
    asked = agent.wait("ProcFdDataRequest")
    assert (asked["start"], asked["stop"]) == (0, None)
    agent.data(proc_id, 0, b"hello ")
    agent.result(proc_id, ended(0, length=11))
    _answer(agent, proc_id, b"hello world", lambda m: m["type"] == "ProcFdDataRequest" and m["stop"] == 11)
    _program().signal(host.runs["r1"], host, 15, stop=True)
    assert "has ended" in host.wait(Remark).message
    agent.data(proc_id, 6, b"world")
    assert host.wait(Finished).state is State.SUCCESS
    assert bytes(host.outputs["r1"]) == b"hello world"
    _program().forget(host.runs["r1"], host)
    assert agent.receive() == {"type": "ProcDeleteRequest", "proc_id": proc_id}


def test_a_connection_cut_in_the_middle_of_output_costs_no_byte(server):
    text = bytes(range(256)) * 8000
    agent = RawAgent(server.address)
    host = _launch(server, _program())
    (proc_id,) = agent.wait("ProcStartRequest")["specs"]
    agent.result(proc_id, ended(0, length=len(text)))
    message = agent.wait("ProcFdDataRequest")
    agent.data(proc_id, 0, text[:500_000])
    host.until(lambda: len(host.outputs.get("r1", b"")) == 500_000)
    agent.cut()
    host.wait(Lost)
    agent = RawAgent(server.address, proc_ids=[proc_id])
    host.wait(Back)
    while host.runs["r1"].state is State.RUNNING and not host.of(Finished):
        message = agent.receive()
        if message["type"] == "ProcResultRequest":
            agent.result(proc_id, ended(0, length=len(text)))
        elif message["type"] == "ProcFdDataRequest":
            agent.data(proc_id, message["start"], text[message["start"] : message["stop"]])
            if message["stop"] == len(text):
                break
    assert host.wait(Finished).state is State.SUCCESS
    assert bytes(host.outputs["r1"]) == text
