"""The n-th commit, send or receive fails, or the server is killed there: for every n, until none is left.

No agent is lost here and no program fails, so there is no excuse: every run comes to the end that it
would have come to, once, and nothing is left behind.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from chaos import kills
from faultpoints import MODES, Fault
from stage import START, Stage

from apsislib.runs import Connect, Launch, Send
from apsislib.times import format_time

SECONDS = 90.0  # of the simulated clock


def explicit(*seconds: float) -> dict[str, object]:
    return {"type": "explicit", "times": [format_time(START + s) for s in seconds]}


def work(*argv: str, **more: object) -> dict[str, object]:
    return {"type": "procstar", "argv": ["/bin/work", *argv], **more}


JOBS: dict[str, dict[str, object]] = {
    "tick": {
        "schedule": explicit(5, 8),
        "condition": {"type": "max_running", "count": 1},
        "program": work("4"),
        "successors": "after",
    },
    "after": {"program": work("1")},
    "halted": {
        "schedule": {"start": explicit(6), "stop": {"type": "duration", "duration": 5}},
        "program": work("80"),
    },
    "deaf": {
        "schedule": explicit(7),
        "program": work("80", "deaf", timeout={"duration": 3}, stop={"grace_period": 4}),
    },
}
ENDS = {"tick": "success", "after": "success", "halted": "success", "deaf": "failure"}
RUNS = Counter({"tick": 2, "after": 2, "halted": 1, "deaf": 1})


def play(path: Path, fault: Fault) -> Stage:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    stage = Stage(path, JOBS, fault)
    stage.run_for(SECONDS)
    return stage


def judge(stage: Stage) -> None:
    """Whether the database tells the truth, and nothing but."""
    reader = stage.reader()
    runs = reader.runs()
    assert Counter(run.job_id for run in runs) == RUNS, runs
    starts = Counter(run_id for model in stage.models for run_id in model.starts)
    assert starts == Counter({run.run_id: 1 for run in runs}), starts
    for run in runs:
        log = [message for _, message in reader.log(run.run_id)]
        assert run.state.value == ENDS[run.job_id], (run, log)
        output = b"".join(reader.output(run.run_id, "output"))
        truth = next(m.outputs[run.run_id] for m in stage.models if run.run_id in m.outputs)
        assert output == truth, (run, log)
        assert log.count("starting") == 1 and log.count("running") == 1, log
        if run.job_id == "deaf":
            assert any(line.startswith("failure: killed by SIGKILL (timeout after 3 s)") for line in log), log
    assert not reader.owed()
    counts = stage.kernel.counts()
    assert counts["active"] == counts["scheduled"] == 0 and not stage.kernel.runs
    assert all(not stage.kernel.occupied((job_id, "{}")) for job_id in JOBS)
    assert all(not model.held for model in stage.models)
    assert stage.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_without_a_fault_all_comes_to_its_end(tmp_path: Path) -> None:
    stage = play(tmp_path / "db", Fault())
    judge(stage)
    assert min(stage.fault.counts[kind] for kind in ("commit", "send", "receive")) > 20


def loop(path: Path, kind: str, mode: str) -> int:
    """How many n there are."""
    n = 0
    while True:
        n += 1
        fault = Fault(kind, mode, n)
        try:
            stage = play(path, fault)
            judge(stage)
        except AssertionError as error:
            raise AssertionError(f"{mode} at {kind} {n}: {error}") from error
        stage.close()
        if not fault.hit:
            return n - 1


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_every_n_recovers_to_the_truth(tmp_path: Path, kind: str, mode: str) -> None:
    assert loop(tmp_path / "db", kind, mode) > 20


def test_a_server_that_looks_for_no_process_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Stage._call
    monkeypatch.setattr(
        Stage, "_call", lambda self, effect: None if isinstance(effect, Connect) else call(self, effect)
    )
    with pytest.raises(AssertionError, match="before at commit"):
        loop(tmp_path / "db", "commit", "before")


def test_a_server_that_acts_before_its_commit_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Stage._commit

    def hasty(self: Stage) -> bool:
        for effect in self.kernel.outbox:
            if isinstance(effect, Launch | Send):
                self._call(effect)
                self._acted.add(id(effect))
        return commit(self)

    monkeypatch.setattr(Stage, "_commit", hasty)
    with pytest.raises(AssertionError, match="before at commit"):
        loop(tmp_path / "db", "commit", "before")


@pytest.mark.timeout(1200)
def test_thirty_real_servers_that_are_killed_somewhere_leave_the_truth(tmp_path: Path) -> None:
    outcome = kills.play(tmp_path, kills.points((1, 2, 5, 11, 24)), print)
    print(outcome)
    assert outcome.verdict.clean, str(outcome)
    assert sum(outcome.history.counts.values()) == 30
