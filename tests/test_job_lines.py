"""Whatever is wrong in a job file, the line that is named is the one to be mended: every line is tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from apsislib import jobs
from apsislib.calendars import Calendars
from apsislib.config import load
from apsislib.errors import JobError
from programs import Table

NOW = 1.78e9
Check = Callable[[str], list[JobError]]

# Jobs that are right, beside OTHER. Between them they have about every key that there is.
PARTS = [
    """\
params: [date, region]
schedule:
- type: daily
  tz: Europe/London
  daytime:
  - "01:00:00"
  - "02:00:00"
  calendar: Mon-Fri
  date_shift: 1
  dst_gap: skip
  args:
    region: eu
- start:
    type: cron
    cron: "*/5 * * * *"
    tz: UTC
    enabled: true
    args:
      date: "2026-01-01"
      region: us
  stop:
    type: duration
    duration: 1h
program: {type: no-op}
""",
    """\
schedule:
- type: explicit
  times:
  - "2040-01-01T00:00:00Z"
- type: interval
  interval: 3600
  phase: 60
- type: daily-interval
  tz: UTC
  start: "01:00:00"
  stop: "02:00:00"
  interval: 60
program: {type: no-op}
expect:
  within: 15 min
  max_duration: 45 min
catch_up:
  policy: all
  window: 2 days
  cap: 1000
""",
    """\
params: [date]
schedule: {type: daily, tz: UTC, daytime: "09:00:00"}
program: {type: no-op}
condition:
- type: dependency
  job_id: other
  args:
    date: "{{ date }}"
  states:
  - success
  exist: true
- type: max_running
  count: 3
- type: skip_duplicate
  check_states:
  - waiting
  target_state: skipped
- type: const
  value: true
""",
    """\
program: {type: no-op}
successors:
- job_id: other
  args:
    date: "2026-01-01"
action:
- type: schedule
  job_id: other
  args:
    date: "2026-01-01"
  if:
    states:
    - failure
- type: email
  to: a@example.com
  from: b@example.com
""",
    """\
metadata:
  labels: [a]
schedule: {type: daily, tz: UTC, daytime: "09:00:00"}
program:
  type: procstar
  argv:
  - /bin/echo
  - hi
  group_id: default
  sudo_user: nobody
  timeout:
    duration: 60
    signal: SIGTERM
  stop:
    signal: SIGTERM
    grace_period: 10
  resources:
    mem_max_gb: 1
  output:
    max_size: 1 MB
    on_max_size: kill
""",
]
OTHER = "params: [date]\nprogram: {type: no-op}\n"

# Not tried: what surrounds everything else, and what is the job's own to name and fill.
LEFT = {"params", "schedule", "program", "metadata", "labels", "region", "date"}


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    directory = tmp_path_factory.mktemp("jobs")
    config = load(None, ["smtp.host=localhost"])
    kinds = jobs.Kinds(Table(config).parse, Calendars(None))
    (directory / "other.yaml").write_text(OTHER)

    def checked(text: str) -> list[JobError]:
        (directory / "job.yaml").write_text(text)
        found, errors = jobs.read_dir(directory, kinds)
        return errors + jobs.check(found, NOW, Calendars(None).get, {e.job_id for e in errors})

    return checked


def changed(text: str) -> Iterator[tuple[str, int, str]]:
    """(text, line, what was done): each key misspelt, each value and item made what cannot be meant."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        entry = re.fullmatch(r"( *(?:- )?)(\w+): ?(.*)", line)
        if entry is None:
            news = [f"{line.partition('- ')[0]}- [1]"]
        else:
            lead, key, value = entry.groups()
            if key in LEFT:
                continue
            news = [f"{lead}{key}x: {value}"]
            if value:
                news += [f"{lead}{key}: {{a: 1}}", f"{lead}{key}: [[1]]"]
            if "program:\n" in text and value and lead:
                news.append(f'{lead}{key}: "{{{{ nope }}}}"')
        for new in news:
            yield "\n".join([*lines[:i], new, *lines[i + 1 :]]) + "\n", i + 1, new.strip()


@pytest.mark.parametrize("text", PARTS)
def test_every_line_that_is_wrong_is_named(check: Check, text: str) -> None:
    assert check(text) == []
    tried = 0
    for wrong, line, change in changed(text):
        errors = [error for error in check(wrong) if error.job_id == "job"]
        said = [(error.line, error.message) for error in errors]
        assert not [message for _, message in said if "Error:" in message], f"{change}: {said}"
        assert line in [error.line for error in errors], f"line {line}, {change}: {said}"
        tried += 1
    assert tried > 15
