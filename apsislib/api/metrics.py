"""GET /metrics: what Prometheus scrapes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apsislib.api.message import Request, Response
from apsislib.api.parts import Parts
from apsislib.metrics import CONTENT_TYPE, Exposition

_STATES = ("expected", "scheduled", "waiting", "starting", "running", "stopping")


def metrics(parts: Parts, request: Request) -> Response:
    tally = parts.driver.tally
    unknown = tally.know(parts.driver.jobs.jobs)
    for job_id, job in parts.driver.jobs.jobs.items():
        if job.expect is not None:
            tally.expect(job_id, job.expect.of(0.0))
    if unknown:
        with parts.store.read() as reader:
            for job_id in unknown:
                tally.looked_up(job_id, reader.last_success(job_id))
    stats = parts.driver.stats()
    reasons = parts.driver.ailments()
    text = Exposition()
    text.one("apsis_info", "gauge", "The server's version.", 1, version=parts.version)
    text.one("apsis_healthy", "gauge", "1 if nothing keeps runs from starting in time.", int(not reasons))
    text.one("apsis_jobs", "gauge", "Jobs of the jobs directory.", len(parts.driver.jobs.jobs))
    text.family("apsis_runs", "gauge", "Unfinished runs by state; expected: made ahead from schedules.")
    for state in _STATES:
        text.sample(stats["runs"][state], state=state)
    tally.write(text)
    _agents(parts, text)
    _engine(stats, text)
    _process(stats, text)
    return Response(body=text.encode(), content_type=CONTENT_TYPE)


def _agents(parts: Parts, text: Exposition) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for connection in parts.connections().values() if parts.connections is not None else ():
        info = connection["info"]
        state = connection["shutdown_state"] if info["stats"]["connected"] else "away"
        found[str(info["conn"]["group_id"]), str(state)] += 1
    text.family("apsis_agents", "gauge", "Agents by group and state; away: may come back.")
    for (group, state), number in sorted(found.items()):
        text.sample(number, group=group, state=state)


def _engine(stats: Any, text: Exposition) -> None:
    writer, timer = stats["writer"], stats["timer"]
    for name, words, extent in (
        ("apsis_timer_lateness_seconds", "How late the timer began what was due.", timer),
        ("apsis_lock_hold_seconds", "How long the engine's lock was held.", stats["lock_hold"]),
        ("apsis_lock_wait_seconds", "How long the engine's lock was waited for.", stats["lock_wait"]),
        ("apsis_commit_seconds", "How long commits took.", writer["commit"]),
    ):
        text.summary(name, words, extent)
    text.one("apsis_commits_total", "counter", "Transactions committed.", writer["commits"])
    text.one("apsis_effects_total", "counter", "Decisions handed to the database.", writer["effects"])
    text.one("apsis_refused_total", "counter", "Records that the database refused.", writer["refused"])
    text.one("apsis_unreadable_rows", "gauge", "Damaged rows that were left out.", writer["unreadable"])
    text.one("apsis_writer_queue", "gauge", "Decisions that wait for their commit.", writer["waiting"])
    text.one(
        "apsis_writer_braked",
        "gauge",
        "1 while nothing is started, for want of a disk.",
        int(stats["writer_braked"]),
    )
    text.one(
        "apsis_output_backlog_bytes", "gauge", "Output that waits to be written.", writer["output_backlog"]
    )
    text.one("apsis_database_bytes", "gauge", "The database file.", writer["size"])
    text.one("apsis_database_wal_bytes", "gauge", "Its write-ahead log.", writer["wal_size"])
    text.family("apsis_queue", "gauge", "Work that waits for a thread, by pool.")
    for name, number in sorted(stats["queues"].items()):
        text.sample(number, pool=name)
    live = stats["run_store"]["publisher"]
    text.one("apsis_subscribers", "gauge", "Live streams.", live["subscribers"])
    text.one(
        "apsis_subscribers_dropped_total", "counter", "Live streams too slow to be kept.", live["dropped"]
    )


def _process(stats: Any, text: Exposition) -> None:
    """The names that every exporter uses."""
    used = stats["rusage_utime"] + stats["rusage_stime"]
    text.one("process_cpu_seconds_total", "counter", "Processor time.", used)
    text.one("process_resident_memory_bytes", "gauge", "Resident memory.", stats["statm_resident"])
    text.one("process_virtual_memory_bytes", "gauge", "Virtual memory.", stats["statm_size"])
    text.one("process_threads", "gauge", "Threads.", stats["threads"])
    text.one("process_open_fds", "gauge", "Open file descriptors.", stats["open_files"])
    text.one("process_start_time_seconds", "gauge", "When the server was started.", stats["started"])
