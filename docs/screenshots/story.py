"""What the pictures of single pages are of: a chain of jobs and its year, programs that print, agents.

Added to the installation of demo.py once that is built.
"""

from __future__ import annotations

import math
import random
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from raw_agent import PROC, RawAgent  # noqa: E402

from apsislib.clock import Deadline, WallClock  # noqa: E402
from apsislib.runs import Run, Save  # noqa: E402
from apsislib.states import State  # noqa: E402
from apsislib.store import Store  # noqa: E402

TOKEN = "of-the-pictures"
HOUR = 3600.0

DESCRIPTION = """Loads the **trades and quotes** of a region, as the vendor delivers them, into the ledger.

## When it fails

1. See whether the vendor's file has come: `ls /data/in/{{ date }}`
2. If it has not, call the vendor; the [runbook](https://runbook.example/ledger) has the number.
3. Otherwise rerun it. What was loaded before is replaced.

| region | file    | due   |
|--------|---------|-------|
| emea   | `E.csv` | 06:15 |
| apac   | `A.csv` | 22:45 |

> The desk sees its positions only once `close/reconcile` is through.
"""
LOAD = r"""
printf '\033[1;36m==> Loading %s\033[0m\n' "{{ date }} {{ region }}"
for n in $(seq 1 40); do
  printf '\rfetching \033[44m%*s\033[0m %3d %%' $((n / 2)) '' $((n * 5 / 2)); sleep 0.02
done; printf '\n'
for n in $(seq 1 2000); do
  printf '\033[32mINFO\033[0m  batch %4d of 2000  \033[2m%6d rows\033[0m\n' $n $((n * 977 % 99991))
  [ $((n % 37)) = 0 ] && printf '\033[33mWARN\033[0m  late quote for \033[1mVOD.L\033[0m, using the last\n'
  [ $n -gt 120 ] && sleep 0.7
done
"""
FETCH = r"""
printf '\033[1;36m==> Fetching the feeds\033[0m\n'
for feed in equities bonds fx futures options; do
  printf '\033[32mok\033[0m    %-9s \033[2m%s\033[0m\n' $feed "$(printf %s $feed | sha1sum | cut -c1-24)"
done
printf '\033[33mwarn\033[0m  rates: the certificate ends in 12 days\n'
printf '\033[31merror\033[0m credit: \033[1mvendor-7.example\033[0m did not answer within 30 s\n'
printf '      \033[4mhttps://vendor-7.example/credit.csv\033[0m, tried 3 times\n'
printf '\033[7m 1 of 7 feeds is missing \033[0m\n'
exit 1
"""


def indented(text: str, spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}\n" if line else "\n" for line in text.strip("\n").split("\n"))


JOBS = {
    "close/load": (
        "params: [date, region]\n"
        "metadata:\n  labels: [close, nightly]\n  owner: ledger desk\n  description: |\n"
        f"{indented(DESCRIPTION, 4)}"
        "schedule:\n"
        "- {type: daily, tz: Europe/London, calendar: Mon-Fri, daytime: '06:30:00', args: {region: emea}}\n"
        "- {type: daily, tz: Asia/Tokyo, calendar: Mon-Fri, daytime: '08:00:00', args: {region: apac}}\n"
        "- {type: daily, tz: America/New_York, calendar: Mon-Fri, daytime: '07:15:00',"
        " args: {region: amer}, enabled: false}\n"
        "expect: {within: 5 m, max_duration: 1 h}\n"
        "action: {type: schedule, job_id: close/tell-the-desk, if: {states: [failure, error]}}\n"
        f"program:\n  type: procstar-shell\n  command: |\n{indented(LOAD, 4)}"
    ),
    "close/rates": (
        "params: [date]\nmetadata: {labels: [close], description: Closing rates of all exchanges.}\n"
        "schedule: {type: cron, cron: '15 5 * * mon-fri', tz: UTC}\nprogram: {type: no-op, duration: 2}\n"
    ),
    "close/reconcile": (
        "params: [date, region]\n"
        "metadata: {labels: [close, nightly], description: Compares the ledger with the custodians.}\n"
        "condition:\n- {type: dependency, job_id: close/load}\n- {type: dependency, job_id: close/rates}\n"
        "- {type: max_running, count: 2}\nprogram: {type: no-op, duration: 60}\n"
    ),
    "close/positions": (
        "params: [date, region]\nmetadata: {labels: [close], description: What the desk sees.}\n"
        "condition: {type: dependency, job_id: close/reconcile}\nprogram: {type: no-op, duration: 20}\n"
    ),
    "close/statements": (
        "params: [date, region]\nmetadata: {labels: [close], description: What clients see.}\n"
        "condition: {type: dependency, job_id: close/reconcile}\n"
        "action: {type: schedule, job_id: close/tell-the-desk, if: {states: success}}\n"
        "program: {type: no-op, duration: 20}\n"
    ),
    "close/tell-the-desk": "metadata: {labels: [close], description: By mail.}\nprogram: {type: no-op}\n",
    "close/fetch-feeds": (
        "metadata: {labels: [close, feeds], description: What vendors deliver over the day.}\n"
        f"program:\n  type: procstar-shell\n  command: |\n{indented(FETCH, 4)}"
    ),
}


def build(directory: Path) -> int:
    """Job files, a config and a year of runs; answers the port for agents."""
    for job_id, text in JOBS.items():
        path = directory / "jobs" / f"{job_id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    (directory / "apsis.yaml").write_text(
        "job_dir: jobs\ndatabase: {path: apsis.db}\nruns: {retention: off}\n"
        "procstar: {agent: {local: true, enable: true, run: {output_interval: 0.5},"
        f" server: {{host: 127.0.0.1, port: {port}, access_token: {TOKEN}}}}}}}\n"
        "smtp: {host: mail.example, auth: {username: apsis, password: hidden}}\n"
    )
    store = Store(directory / "apsis.db", WallClock())
    store.open()
    store.start()
    store.wait(store.put([Save(run) for run in year()]), 60)
    assert store.close(Deadline(30))
    return port


def year() -> list[Run]:
    """The chain's runs of a year's weekdays, their numbers below those of demo.py."""
    random.seed(3)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    runs: list[Run] = []
    for back in range(360, 0, -1):
        day = today - timedelta(days=back)
        if day.weekday() > 4:
            continue
        for region, hour in (("apac", -1.0), ("emea", 6.5)):
            at = day.timestamp() + hour * HOUR
            args = {"date": day.date().isoformat(), "region": region}
            slow = 900 + 300 * math.sin(back / 40)
            for job_id, due, takes, fails in (
                ("close/load", at, slow, 0.05),
                ("close/reconcile", at + 1500, 260, 0.02),
                ("close/positions", at + 1800, 70, 0.01),
            ):
                took = takes * math.exp(random.gauss(0, 0.22))
                draw = random.random()
                state = (
                    State.FAILURE if draw < fails else State.ERROR if draw < fails * 1.3 else State.SUCCESS
                )
                times = {"schedule": due, "scheduled": due - HOUR, "starting": due, "running": due}
                times[state.value] = due + took
                meta = {"job": {"labels": ["close"]}}
                number = f"r{len(runs) + 1}"
                runs.append(Run(number, job_id, args, state, due + took, times, meta=meta, rev=4))
    return runs


def begin(server: Any, port: int) -> dict[str, str]:
    """Once the server runs: runs of today's chain, and agents. Answers run IDs by what they show."""
    date = datetime.now(UTC).date().isoformat()

    def make(job_id: str, **args: str) -> str:
        return str(server.schedule({"job_id": job_id, "args": args}))

    rates = make("close/rates", date=date)
    shown = {"running": make("close/load", date=date, region="emea")}
    for job_id in ("reconcile", "positions", "statements"):
        run_id = make(f"close/{job_id}", date=date, region="emea")
        shown.setdefault("waiting", run_id)
    shown["failed"] = make("close/fetch-feeds")
    server.until(shown["failed"], "failure")
    server.until(rates, "success")
    for name, host, group, state in (
        ("gpu-1", "gpu-01.fra", "gpu", "active"),
        ("gpu-2", "gpu-02.fra", "gpu", "idling"),
        ("gpu-3", "gpu-03.fra", "gpu", "active"),
    ):
        agent = RawAgent(
            ("127.0.0.1", port),
            name,
            group_id=group,
            access_token=TOKEN,
            shutdown_state=state,
            proc={**PROC, "hostname": host, "username": "batch"},
        )
        if name == "gpu-3":
            agent.cut()
        AGENTS.append(agent)
    stranger = RawAgent(("127.0.0.1", port), "stranger", register=False)
    stranger.register(access_token="guessed")
    AGENTS.append(stranger)
    server.schedule(
        {"job": {"program": {"type": "procstar", "argv": ["/opt/train"], "group_id": "training"}}}
    )
    return shown


AGENTS: list[RawAgent] = []  # kept, as their connections end with them
