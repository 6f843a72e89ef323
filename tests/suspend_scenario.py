"""A host that is suspended and resumed, for real. Run by test_suspend.py, as root of a Linux of its own."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from server import Server


def slept() -> float:
    """Seconds that this host has spent suspended: the monotonic clock leaves them out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def suspend() -> float:
    """The seconds for which this host was away."""
    before = slept()
    Path("/sys/power/state").write_text("mem")
    return slept() - before


def test_a_suspended_host_loses_nothing_and_says_why_it_is_late(tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        {
            "tick": "schedule: {type: interval, interval: 4}\nprogram: {type: no-op}\n",
            "long": "program: {type: procstar-shell, command: 'echo begun; sleep 4; echo done'}\n",
            "over": "program: {type: procstar, argv: [/bin/sleep, 100], timeout: {duration: 10}}\n",
        },
    )
    with server.running():
        long, over = (server.schedule({"job_id": job_id}) for job_id in ("long", "over"))
        server.until_printed(long, b"begun\n")
        server.until(over, "running")
        seconds = suspend()
        assert seconds > 12
        assert server.until(over, "failure")["meta"]["program"]["status"]["signal"] == "SIGTERM"
        # The suspended time counts: a timeout is about when others may rely on its end.
        assert "timeout after 10 s" in server.messages(over)[-1]
        times = server.run(over)["times"]
        assert 10 <= instant(times["failure"]) - instant(times["running"]) < seconds + 10
        server.until(long, "success")
        assert server.output(long) == b"begun\ndone\n"
        late = [run for run in ticks(server) if "late" in run["meta"].get("reasons", {})]
        assert late and all(
            run["meta"]["reasons"]["late"].startswith("the host was suspended from ") for run in late
        ), late
        # Not one occurrence is missing, and none is there twice.
        due = sorted(instant(run["times"]["schedule"]) for run in ticks(server))
        assert [b - a for a, b in zip(due, due[1:], strict=False)] == [4.0] * (len(due) - 1)
        assert "the host was suspended from" in server.log()


def ticks(server: Server) -> list[dict]:
    runs = server.get("/runs", job_id="tick")["runs"].values()
    return [run for run in runs if run["state"] == "success"]


def instant(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
