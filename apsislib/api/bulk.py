"""One operation on many runs: a list of them, or all that match a search.

    POST /api/v1/bulk    {"operation": "skip", "runs": ["r12", "r13"]}
                         {"operation": "mark", "state": "success", "query": "etl state:error since:1d"}

`operation` is skip, start, stop, signal (with `signal`), mark (with `state`) or rerun; `reason` goes into
the log of each run. `query` is in the
language of terms.py, and means the runs that match it now. With `"dry_run": true` nothing is done. The
answer has `done`, the runs to which it was (or would be) done, with the IDs of their reruns in `made`;
and `refused`, with the reason for each: one run that can't be served keeps none of the others from it.
"""

from __future__ import annotations

from typing import Any

from apsislib.api.message import Request, Response, ok
from apsislib.api.parts import Parts
from apsislib.api.runs import parse_signal, parse_state, reason
from apsislib.errors import BadRequest
from apsislib.operations import VERBS
from apsislib.states import FINISHED
from apsislib.terms import Term, admits, parse

MOST = 10_000  # runs of one operation; who means more can ask again
PAGE = 1000
KEYS = ("operation", "runs", "query", "state", "signal", "reason", "dry_run")


def bulk(parts: Parts, request: Request) -> Response:
    body = request.json()
    surplus = [key for key in body if key not in KEYS]
    if surplus:
        raise BadRequest(f"unexpected keys: {' '.join(surplus)} (known: {', '.join(KEYS)})")
    verb = body.get("operation")
    if verb not in VERBS:
        raise BadRequest(f"operation must be one of {', '.join(VERBS)}: {verb!r}")
    options: dict[str, Any] = {}
    for key, of, read in (("state", "mark", parse_state), ("signal", "signal", parse_signal)):
        if (verb == of) != (body.get(key) is not None):
            raise BadRequest(f"{key} is missing" if verb == of else f"{key} has no meaning for {verb}")
        if verb == of:
            options["signum" if key == "signal" else key] = read(str(body[key]))
    if verb == "mark" and options["state"] not in FINISHED:
        raise BadRequest(f"can't mark runs to state {options['state']}")
    dry_run = body.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise BadRequest(f"dry_run must be true or false: {dry_run!r}")
    options["reason"] = reason(body.get("reason"))
    done, refused = parts.driver.bulk(verb, _runs(parts, body), dry_run=dry_run, **options)
    made = done if verb == "rerun" and not dry_run else {}
    return ok({"operation": verb, "dry_run": dry_run, "done": list(done), "made": made, "refused": refused})


def _runs(parts: Parts, body: Any) -> list[str]:
    given, query = body.get("runs"), body.get("query")
    if (given is None) == (query is None):
        raise BadRequest("give either runs, a list of run IDs, or query, a search")
    if query is not None:
        # An empty one would mean every run there ever was.
        if not isinstance(query, str) or not query.strip():
            raise BadRequest("query must be a search, such as: etl state:failure since:1d")
        return _matching(parts, parse(query, parts.clock.wall()))
    if not isinstance(given, list) or not all(isinstance(run_id, str) for run_id in given):
        raise BadRequest("runs must be a list of run IDs")
    found = list(dict.fromkeys(given))
    _check(len(found))
    return found


def _matching(parts: Parts, terms: list[Term]) -> list[str]:
    # Before the database, as runs go from here to there.
    found = {run.run_id for run in parts.driver.expected() if admits(terms, run)}
    before: int | None = None
    while True:
        with parts.store.read() as reader:
            rows, before = reader.search(terms, before, PAGE)
        found.update(run.run_id for run in rows)
        _check(len(found))
        if before is None:
            return sorted(found, key=lambda run_id: int(run_id[1:]))


def _check(count: int) -> None:
    if count > MOST:
        raise BadRequest(f"more than {MOST} runs in one operation; narrow the search, or do it in parts")
