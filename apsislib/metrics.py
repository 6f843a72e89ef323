"""What is counted of runs, and the text in which Prometheus reads figures (format 0.0.4).

Counters begin at zero with each start of the server, as Prometheus expects; what a job last did well
is looked up in the database.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from threading import Lock

from apsislib.runs import Run
from apsislib.states import FINISHED, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_JOBS = 1000  # that have series of their own: a scrape must not grow without end
OTHERS = "(others)"
AD_HOC = "(ad hoc)"
# Seconds by which runs begin late. Below 50 ms nobody minds; beyond an hour nobody counts.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class Tally:
    """Outcomes and lateness of runs, counted as their rows are committed."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects all below; leaf
        self._names: dict[str, str] = {}  # job ID -> label
        self._ended: Counter[tuple[str, State]] = Counter()
        self._alarms: Counter[tuple[str, str]] = Counter()
        self._succeeded: dict[str, float] = {}  # by label: instant of the last success
        self._asked: set[str] = set()  # job IDs whose last success has been looked up
        self._late = [0] * (len(BUCKETS) + 1)
        self._late_sum = 0.0

    def saw(self, runs: Iterable[Run]) -> None:
        """Records of transitions, as committed."""
        with self._lock:
            for run in runs:
                if run.state in FINISHED:
                    self._end_locked(run)
                elif run.rev == 1:
                    due = run.times.get("schedule", 0.0)
                    late = run.timestamp - due
                    # Not those that were made for at once, nor those that were started by hand before.
                    if late >= 0 and due > run.times.get("scheduled", due):
                        self._late[bisect_left(BUCKETS, late)] += 1
                        self._late_sum += late

    def _end_locked(self, run: Run) -> None:
        label = self._label_locked(run.job_id)
        if run.state is State.SUCCESS:
            self._succeeded[label] = max(self._succeeded.get(label, 0.0), run.timestamp)
        if sum(state.value in run.times for state in FINISHED) == 1:  # else a mark: it ended before
            self._ended[label, run.state] += 1

    def totals(self) -> tuple[int, int]:
        """(runs that have ended, those of them that failed) since the start."""
        with self._lock:
            ended = list(self._ended.items())
        bad = (State.FAILURE, State.ERROR)
        return sum(n for _, n in ended), sum(n for (_, state), n in ended if state in bad)

    def heard(self, alarms: Iterable[tuple[str, str]]) -> None:
        """(job ID, alarm) of runs that did not keep to what is expected of them."""
        with self._lock:
            for job_id, alarm in alarms:
                self._alarms[self._label_locked(job_id), alarm] += 1

    def know(self, job_ids: Iterable[str]) -> list[str]:
        """Count these jobs from zero on. Answers those whose last success has yet to be looked up."""
        with self._lock:
            named = [job_id for job_id in job_ids if self._label_locked(job_id) == job_id]
            for job_id in named:
                for state in FINISHED:
                    self._ended[job_id, state] += 0  # the series must be there before its first failure
            return [job_id for job_id in named if job_id not in self._asked]

    def expect(self, job_id: str, alarms: Iterable[str]) -> None:
        """Count these alarms of a job from zero on."""
        with self._lock:
            for alarm in alarms:
                self._alarms[self._label_locked(job_id), alarm] += 0

    def looked_up(self, job_id: str, succeeded: float | None) -> None:
        with self._lock:
            self._asked.add(job_id)
            if succeeded is not None:
                self._succeeded[job_id] = max(self._succeeded.get(job_id, 0.0), succeeded)

    def _label_locked(self, job_id: str) -> str:
        if job_id.startswith("adhoc-"):
            return AD_HOC
        label = self._names.get(job_id)
        if label is None:
            label = job_id if len(self._names) < MOST_JOBS else OTHERS
            if label is job_id:
                self._names[job_id] = label
        return label

    def write(self, text: Exposition) -> None:
        with self._lock:
            ended, succeeded = dict(self._ended), dict(self._succeeded)
            late, total = list(self._late), self._late_sum
            alarms = dict(self._alarms)
        text.family("apsis_runs_finished_total", "counter", "Runs that have ended, by job and how.")
        for (job, state), number in sorted(ended.items()):
            text.sample(number, job=job, state=state.value)
        text.family("apsis_alarms_total", "counter", "Runs found late, missed or long, by job.")
        for (job, alarm), number in sorted(alarms.items()):
            text.sample(number, job=job, alarm=alarm)
        text.family("apsis_job_last_success_timestamp_seconds", "gauge", "When a job's last success ended.")
        for job, instant in sorted(succeeded.items()):
            text.sample(instant, job=job)
        text.family(
            "apsis_start_lateness_seconds", "histogram", "By how much runs were begun after their time."
        )
        number = 0
        for bound, more in zip((*BUCKETS, float("inf")), late, strict=True):
            number += more
            text.sample(number, "_bucket", le="+Inf" if bound == float("inf") else repr(bound))
        text.sample(total, "_sum")
        text.sample(number, "_count")


class Exposition:
    """Families of samples, one after the other."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def family(self, name: str, kind: str, words: str) -> None:
        """Samples of this name follow. `kind`: counter, gauge or histogram."""
        self._name = name
        self._lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]

    def sample(self, value: float, suffix: str = "", **labels: str) -> None:
        pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        self._lines.append(
            f"{self._name}{suffix}{{{pairs}}} {value}" if pairs else f"{self._name}{suffix} {value}"
        )

    def summary(self, name: str, words: str, extent: Mapping[str, float]) -> None:
        """What an Extent has seen: its sum and count, and in a family of its own its largest value."""
        self.family(name, "summary", words)
        self.sample(extent["mean"] * extent["count"], "_sum")
        self.sample(extent["count"], "_count")
        self.one(f"{name}_max", "gauge", f"{words} Longest since the start.", extent["max"])

    def one(self, name: str, kind: str, words: str, value: float, **labels: str) -> None:
        """A family of a single sample."""
        self.family(name, kind, words)
        self.sample(value, **labels)

    def encode(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode("utf-8", "replace")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
