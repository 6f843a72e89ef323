"""The shapes of requests and answers, as JSON Schema: what openapi.json promises.

What a client may rely on is listed in full and nothing else allowed beside it. Where the shape is that
of a program, condition, action or schedule type, its own keys are left open.
"""

from __future__ import annotations

from typing import Any

from apsislib.catchup import POLICIES
from apsislib.operations import VERBS
from apsislib.states import State

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def maybe(of: Schema) -> Schema:
    return {"anyOf": [of, {"type": "null"}]}


def mapping(of: Schema, names: str | None = None) -> Schema:
    """Of any names, or those of a pattern."""
    if names is None:
        return {"type": "object", "additionalProperties": of}
    return {"type": "object", "patternProperties": {names: of}, "additionalProperties": False}


def record(optional: Schema | None = None, more: bool = False, /, **required: Schema) -> Schema:
    """An object of just these keys; `more`: others may stand beside them."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": more,
    }


_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}\+00:00$"
_ARGS = mapping(TEXT)
_SUMMARY = {
    "run_id": ref("RunID"),
    "job_id": TEXT,
    "args": ref("Args"),
    "state": ref("State"),
    "times": mapping(ref("Time"), f"^(schedule|stop|{'|'.join(State)})$"),
    "labels": array(TEXT),
}
_SUMMARY_MORE = {
    "alarms": {"type": "array", "minItems": 1, "items": {"enum": ["late", "missed", "long"]}},
    "reasons": {
        "type": "object",
        "description": "why, for each of the alarms: only with them",
        "properties": {name: TEXT for name in ("late", "missed", "long")},
        "additionalProperties": False,
    },
    "late_verdict": ref("State")
    | {"description": "how its program really ended after the run had been given up, unless it is marked so"},
    "expected": {"const": True, "description": "made by a schedule and not begun: not in the database yet"},
    "dependencies": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "array",
            "prefixItems": [TEXT, ref("Args")],
            "minItems": 2,
            "maxItems": 2,
        },
    },
}
_RUN = {
    "conds": array(ref("Typed")),
    "actions": array(ref("Typed")),
    "meta": {"type": "object"},
    "program": maybe(ref("Typed")),
}
_RERUNS = array(ref("RunID")) | {"minItems": 1, "description": "what reruns it; where one run is asked for"}
_OUTPUT = {"name": TEXT, "length": WHOLE, "content_type": TEXT}
_LINE = {"timestamp": ref("Time"), "message": TEXT}


_GRAPH = {
    "middle": TEXT | {"description": "the key of the node that was asked for"},
    "edges": array({"type": "array", "items": TEXT, "minItems": 3, "maxItems": 3})
    | {"description": "[a, b, kind]: b waits for a (dependency), or a makes runs of b (action)"},
    "more": FLAG | {"description": "whether some were left out"},
}


def _message(kind: str, **rest: Schema) -> Schema:
    return record(type={"const": kind}, **rest)


SCHEMAS: dict[str, Schema] = {
    "Error": record(
        {
            "job_errors": array({"type": "array", "prefixItems": [TEXT, TEXT], "minItems": 2, "maxItems": 2}),
            "reasons": array(TEXT),
        },
        error={"type": "string", "minLength": 1},
    ),
    "Nothing": record(),
    "Time": {"type": "string", "pattern": _TIME, "description": "an instant in UTC, to the millisecond"},
    "RunID": {"type": "string", "pattern": "^r[0-9]+$"},
    "State": {"enum": [state.value for state in State]},
    "Args": _ARGS,
    "Typed": record({"type": TEXT, "enabled": {"type": ["boolean", "string"]}}, True, str=TEXT),
    "RunSummary": record(_SUMMARY_MORE, **_SUMMARY),
    "Run": record(_SUMMARY_MORE | {"rerun_of": ref("RunID"), "reruns": _RERUNS}, **_SUMMARY, **_RUN),
    "Runs": record(
        {"show_run_id": ref("RunID")},
        when=ref("Time"),
        runs=mapping({"anyOf": [ref("Run"), ref("RunSummary")]}, "^r[0-9]+$"),
    ),
    "FoundRuns": record(
        when=ref("Time"),
        runs=mapping(ref("RunSummary"), "^r[0-9]+$"),
        next=maybe(TEXT)
        | {"description": "the `before`, or `cursor`, of the next page; null: there is none"},
    ),
    "Completions": record(jobs=array(TEXT), labels=array(TEXT), params=array(TEXT)),
    "FoundJobs": record(
        jobs=array(
            record(
                job_id=TEXT,
                params=array(TEXT),
                labels=array(TEXT),
                description=TEXT | {"description": "its first paragraph, 240 characters at most"},
                schedule=array(record(words=TEXT, enabled=FLAG)),
                program=record(type=TEXT, str=TEXT),
            )
        )
    ),
    "JobsOverview": record(
        when=ref("Time"),
        jobs=mapping(
            record(
                last=maybe(record(run_id=ref("RunID"), state=ref("State"), time=ref("Time"))),
                next=maybe(record(run_id=maybe(ref("RunID")), time=ref("Time"))),
            )
        ),
    ),
    "Past": {
        "type": "array",
        "description": "run ID, state, schedule time, start (or end, if it never ran), seconds",
        "prefixItems": [ref("RunID"), ref("State"), maybe(ref("Time")), ref("Time"), maybe(NUMBER)],
        "minItems": 5,
        "maxItems": 5,
    },
    "Recent": record(jobs=mapping(array(ref("Past")))),
    "History": record(
        runs=array(ref("Past")),
        next=maybe(ref("RunID")) | {"description": "the `before` of the next page; null: there is none"},
    ),
    "Days": record(
        since={"type": "string", "format": "date"},
        days=mapping(mapping(WHOLE, f"^({'|'.join(State)})$"), "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
        next=maybe(ref("RunID"))
        | {"description": "the `before` of the next piece, to be added; null: there is none"},
    ),
    "Board": record(
        when=ref("Time"),
        counts=record(running=WHOLE, waiting=WHOLE, failing=WHOLE)
        | {"description": "how many there are, 10,000 or 1,000 at most; the lists have the first hundred"},
        failing=array(ref("RunSummary"))
        | {
            "description": "failures of the last day that no later run of the same job and args has made good"
        },
        alarmed=array(ref("RunSummary")) | {"description": "unfinished, and late, missed or long"},
        running=array(ref("RunSummary")) | {"description": "starting, running and stopping; oldest first"},
        waiting=array(ref("RunSummary")) | {"description": "oldest first"},
        why=mapping(array(record({"reason": maybe(TEXT), "since": ref("Time")}, condition=TEXT)), "^r[0-9]+$")
        | {"description": "what the first of those that wait are waiting for"},
        next=array(record(job_id=TEXT, args=ref("Args"), time=ref("Time"), run_id=maybe(ref("RunID"))))
        | {"description": "the next starts, a null ID where there is no run yet"},
        typical=mapping(NUMBER) | {"description": "seconds that a success of the job took lately, by job"},
        agents=record(
            live=WHOLE,
            draining=WHOLE,
            lost=array(record(conn_id=TEXT, group_id=TEXT, hostname=TEXT, since=maybe(TEXT))),
        ),
        ailments=array(TEXT) | {"description": "what keeps runs from starting in time"},
    ),
    "Timeline": record(
        when=ref("Time"),
        since=ref("Time"),
        until=ref("Time"),
        jobs=WHOLE | {"description": "how many have something in the span, on all pages"},
        complete=maybe(ref("Time"))
        | {"description": "where runs are too many: nothing is known before this; null: all is there"},
        rows=array(
            record(
                job_id=TEXT,
                typical=maybe(NUMBER) | {"description": "seconds that a success took lately"},
                count=WHOLE | {"description": "finished runs in the span"},
                failures=WHOLE,
                runs=array(ref("Past")) | {"description": "finished, newest first; none if there are slots"},
                slots=array({"type": "array", "items": WHOLE, "minItems": 3, "maxItems": 3})
                | {"description": "of many runs: which 120th of the span, how many ended, how many failed"},
                active=array(ref("Past")) | {"description": "unfinished, newest first"},
                ahead=array(
                    {
                        "type": "array",
                        "prefixItems": [ref("Time"), maybe(ref("RunID"))],
                        "minItems": 2,
                        "maxItems": 2,
                    }
                )
                | {"description": "starts to come, and the IDs of the runs that there are already"},
            )
        ),
    ),
    "JobGraph": record(
        **_GRAPH, nodes=array(record(key=TEXT, job_id=TEXT, exists=FLAG | {"description": "in the jobs"}))
    ),
    "RunGraph": record(
        **_GRAPH,
        nodes=array(record(key=TEXT, job_id=TEXT, args=ref("Args"), runs=array(ref("RunSummary")))),
        made_by=maybe(ref("RunID")) | {"description": "the run whose action made this one"},
        made=array(ref("RunSummary")) | {"description": "runs that its actions made"},
    ),
    "RunLog": record(run_log=array(record(run_id=ref("RunID"), **_LINE))),
    "RunState": record(state=ref("State")),
    "Dependencies": mapping(
        array(record(job_id=TEXT, args=ref("Args"), run_ids=array(ref("RunID")))), "^r[0-9]+$"
    ),
    "Waiting": record(
        run_id=ref("RunID"),
        state=ref("State"),
        waiting=array(
            record(
                {
                    "reason": maybe(TEXT),
                    "since": ref("Time"),
                    "runs": array(record(None, True, run_id=ref("RunID"), state=ref("State"))),
                },
                condition=TEXT,
                holds=FLAG,
            )
        ),
    ),
    "Outputs": array(
        record(
            output_id=TEXT,
            output_len=WHOLE | {"description": "bytes that are stored"},
            name=TEXT,
            content_type=TEXT,
            complete=FLAG | {"description": "whether no more is to come: see X-Apsis-Complete of an output"},
        )
    ),
    "OutputLines": record(
        length=WHOLE,
        start=WHOLE,
        stride=WHOLE | {"description": "bytes of a stretch; the last one may be shorter"},
        counts=array(WHOLE),
        next=maybe(WHOLE) | {"description": "the `start` of the next piece; null: there is none"},
    ),
    "OutputMatches": record(
        length=WHOLE,
        matches=array({"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2})
        | {"description": "byte and bytes of each; backwards, the last one first"},
        next=maybe(WHOLE) | {"description": "the `start` of the next piece; null: there is none"},
    ),
    "NewRun": {
        **record(
            {
                "job_id": TEXT,
                "job": {"type": "object", "description": "a job as in a job file, for this once"},
                "args": mapping({"type": ["string", "number", "boolean"]}),
                "times": record(
                    {
                        "schedule": {
                            "type": ["string", "null"],
                            "description": "`now`, or an instant with zone",
                        },
                        "stop": {
                            "type": ["string", "number", "null"],
                            "description": "an instant, or a duration after the schedule time",
                        },
                    }
                ),
            },
            True,
        ),
        "anyOf": [{"required": ["job_id"]}, {"required": ["job"]}],
    },
    "Bulk": {
        **record(
            {
                "runs": array(TEXT),
                "query": TEXT | {"description": "a search, as of /api/v1/search/runs"},
                "state": TEXT | {"description": "of mark"},
                "signal": {"type": ["string", "integer"], "description": "of signal"},
                "reason": TEXT | {"description": "for the log of each run"},
                "dry_run": FLAG,
            },
            operation={"enum": list(VERBS)},
        ),
        "oneOf": [{"required": ["runs"]}, {"required": ["query"]}],
    },
    "BulkDone": record(
        operation={"enum": list(VERBS)},
        dry_run=FLAG,
        done=array(ref("RunID")),
        made=mapping(ref("RunID")) | {"description": "the reruns, by the IDs of what they rerun"},
        refused=mapping(TEXT) | {"description": "why not, by run ID"},
    ),
    "Job": record(
        {
            "expect": record({"within": NUMBER, "by": TEXT, "tz": TEXT, "max_duration": NUMBER}, str=TEXT),
            "catch_up": record(
                {
                    "policy": {"enum": list(POLICIES)},
                    "window": {"anyOf": [NUMBER, {"const": "off"}]},
                    "cap": WHOLE,
                }
            ),
        },
        job_id=TEXT,
        params=array(TEXT),
        schedule=array(record({}, True, str=TEXT, enabled=FLAG, words=TEXT)),
        program=ref("Typed"),
        condition=array(ref("Typed")),
        common_conditions=array(ref("Typed")),
        resolved_conditions=array(record(schedule_args=ref("Args"), conditions=array(ref("Typed")))),
        action=array(ref("Typed")),
        metadata=record({"description": TEXT}, True, labels=array(TEXT)),
        ad_hoc=FLAG,
    ),
    "Jobs": array(ref("Job")),
    "Upcoming": record(
        when=ref("Time"),
        since=ref("Time"),
        until=ref("Time"),
        upcoming=array(
            record(
                job_id=TEXT,
                schedule=WHOLE | {"description": "its place in the job file, from 0"},
                time=ref("Time"),
                args=ref("Args"),
                stop=maybe(ref("Time")),
                note=maybe(TEXT),
                skipped=maybe(TEXT) | {"description": "why there is no run; null: there is"},
                run_id=maybe(ref("RunID")),
                state=maybe(ref("State")),
            )
        ),
        next=maybe(TEXT) | {"description": "the `cursor` of the next page; null: there is none"},
    ),
    "Connection": record(
        shutdown_state={"enum": ["active", "idling", "done"]},
        info=record(
            conn=record(conn_id=TEXT, group_id=TEXT, restricted_exe=maybe(TEXT)),
            socket=record(address=TEXT, port=WHOLE),
            proc=record(
                pid=WHOLE,
                ppid=WHOLE,
                uid=WHOLE,
                euid=WHOLE,
                username=TEXT,
                gid=WHOLE,
                egid=WHOLE,
                groupname=TEXT,
                hostname=TEXT,
            ),
            stats=record(
                connected=FLAG,
                first_connect_time=TEXT,
                last_connect_time=TEXT,
                last_disconnect_time=maybe(TEXT),
                num_connections=WHOLE,
                num_received=WHOLE,
                num_sent=WHOLE,
            ),
        ),
    ),
    "Connections": mapping(ref("Connection")),
    "Groups": mapping(array(ref("Connection"))),
    "Agents": record(
        when=ref("Time"),
        agents=array(
            record(
                conn_id=TEXT,
                group_id=TEXT,
                state={"enum": ["live", "draining", "done", "lost"]},
                hostname=TEXT,
                address=TEXT,
                username=TEXT,
                pid=maybe(WHOLE),
                restricted_exe=maybe(TEXT),
                since=maybe(TEXT),
                first_connect_time=maybe(TEXT),
                connections=maybe(WHOLE),
                load=WHOLE | {"description": "runs on it"},
                runs=array(
                    record(
                        run_id=ref("RunID"),
                        job_id=TEXT,
                        args=ref("Args"),
                        state=ref("State"),
                        since=ref("Time"),
                    )
                )
                | {"description": "the first hundred"},
            )
        ),
        unplaced=mapping(WHOLE) | {"description": "runs that wait for an agent, by group"},
        history=array(
            record(
                time=ref("Time"),
                event={"enum": ["connected", "idling", "done", "lost", "refused"]},
                conn_id=maybe(TEXT),
                group_id=maybe(TEXT),
                hostname=maybe(TEXT),
                address=TEXT,
                reason=TEXT,
            )
        )
        | {"description": "the latest first; since the start of the server"},
    ),
    "Series": record(
        end=TEXT | {"description": "the instant of the last point"},
        step=NUMBER | {"description": "seconds between two points"},
        series=mapping(array(NUMBER)) | {"description": "points by name, the oldest first"},
    ),
    "Config": record(config={"type": "object"}, version=TEXT),
    "LastReload": record(
        time=ref("Time"),
        jobs=WHOLE,
        errors=array(record(job_id=maybe(TEXT), path=TEXT, line=maybe(WHOLE), message=TEXT)),
        warnings=array(TEXT),
    ),
    "Version": record(version=TEXT),
    "Reloaded": record(
        removed=array(TEXT),
        added=array(TEXT),
        changed=array(TEXT),
        dry_run=FLAG,
        runs=record(appear=ref("FutureRuns"), disappear=ref("FutureRuns"), change=ref("FutureRuns")),
    ),
    "FutureRuns": record(
        count=WHOLE,
        runs=array(record(job_id=TEXT, args=ref("Args"), schedule=ref("Time")))
        | {"description": "the first thousand, by time"},
    ),
    # May grow with any release.
    "Stats": record(
        {},
        True,
        start_time=ref("Time"),
        time=ref("Time"),
        tasks={"type": "object"},
        runs=mapping(WHOLE),
        rusage_maxrss=WHOLE,
        rusage_utime=NUMBER,
        rusage_stime=NUMBER,
    ),
    "Health": record(reasons={"type": "array", "maxItems": 0}),
    "OpenAPI": record({}, True, openapi=TEXT, info={"type": "object"}, paths={"type": "object"}),
    # -- frames of WebSockets
    "SummaryFrame": {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                _message("job", job=ref("Job")),
                _message("job_add", job=ref("Job")),
                _message("job_delete", job_id=TEXT),
                _message("run_summary", run_summary=ref("RunSummary")),
                _message("run_transition", run_summary=ref("RunSummary")),
                _message("run_delete", run_id=ref("RunID")),
                _message("agent_conn", conn=ref("Connection")),
                _message("agent_conn_delete", conn_id=TEXT),
            ]
        },
    },
    "RunFrame": {
        **record(
            {
                "run": ref("RunSummary"),
                "meta": {"type": "object"},
                "run_log": array(record(**_LINE)),
                "run_log_append": record(**_LINE),
                "outputs": mapping(record(**_OUTPUT)),
            }
        ),
        "minProperties": 1,
    },
}
