"""The mini language of searches: `etl date=2031-05 state:fail,error since:2d !label:test`.

    JOB               JOB is a part of the job ID
    NAME=VALUE        the arg NAME contains VALUE
    NAME=             the arg NAME is given
    NAME==VALUE       the arg NAME is VALUE
    path:P            the job ID is P, or below it as in a directory
    state:S1,S2       the state is one of these, or begins unambiguously like one
    label:L           L is one of the job's labels
    alarm:A1,A2       the run is called one of these: late, missed, long
    verdict:S1,S2     the run was given up, and its program, it was told later, ended in one of these states,
                      which has not been accepted; any: whichever
    since:T until:T   the latest transition is not before T, or before T: an instant with zone, a date
                      (its beginning, UTC), `now`, or a duration: so long ago
    !TERM             the contrary

A run must pass every term. Double quotes hold a word together and take from `! = :` their meaning; in
them a backslash stands before a quote or backslash. ASCII letters of JOB and VALUE may have either case.
Each term can judge a run by itself; store/searching.py has the same in SQL.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from apsislib.errors import BadRequest
from apsislib.runs import Run, labels, marks
from apsislib.states import FINISHED, State
from apsislib.times import parse_duration, parse_time

ALARMS = ("late", "missed", "long")  # as expectations.py has them
MOST = 50  # terms of a search: each is a clause of the query

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def lower(text: str) -> str:
    """In lower case as SQLite sees it: ASCII only."""
    return text.translate(_LOWER)


@dataclass(frozen=True, slots=True)
class JobPart:
    text: str  # lower case

    def admits(self, run: Run) -> bool:
        return self.text in lower(run.job_id)


@dataclass(frozen=True, slots=True)
class JobIs:
    job_id: str

    def admits(self, run: Run) -> bool:
        return run.job_id == self.job_id


@dataclass(frozen=True, slots=True)
class JobUnder:
    path: str  # without a slash at its end

    def admits(self, run: Run) -> bool:
        return run.job_id == self.path or run.job_id.startswith(self.path + "/")


@dataclass(frozen=True, slots=True)
class ArgIs:
    name: str
    value: str

    def admits(self, run: Run) -> bool:
        return run.args.get(self.name) == self.value


@dataclass(frozen=True, slots=True)
class ArgHas:
    name: str
    text: str  # lower case; empty: the arg need only be given

    def admits(self, run: Run) -> bool:
        return self.name in run.args and self.text in lower(run.args[self.name])


@dataclass(frozen=True, slots=True)
class StateIn:
    states: frozenset[State]

    def admits(self, run: Run) -> bool:
        return run.state in self.states


@dataclass(frozen=True, slots=True)
class Label:
    label: str

    def admits(self, run: Run) -> bool:
        return self.label in labels(run.meta.get("job"))


@dataclass(frozen=True, slots=True)
class Marked:
    """The run has one of these marks: see runs.marks()."""

    marks: frozenset[str]

    def admits(self, run: Run) -> bool:
        return not self.marks.isdisjoint(marks(run.meta, run.state))


@dataclass(frozen=True, slots=True)
class Since:
    time: float  # instant

    def admits(self, run: Run) -> bool:
        return run.timestamp >= self.time


@dataclass(frozen=True, slots=True)
class Not:
    term: JobPart | JobUnder | ArgHas | ArgIs | Label | Marked

    def admits(self, run: Run) -> bool:
        return not self.term.admits(run)


@dataclass(frozen=True, slots=True)
class Until:
    time: float  # instant

    def admits(self, run: Run) -> bool:
        return run.timestamp < self.time


Term = JobPart | JobIs | JobUnder | ArgHas | ArgIs | StateIn | Label | Marked | Since | Until | Not


def admits(terms: Collection[Term], run: Run) -> bool:
    return all(term.admits(run) for term in terms)


def parse(text: str, now: float) -> list[Term]:
    """The terms of a search. Raises BadRequest."""
    words = list(_words(text))
    if len(words) > MOST:
        raise BadRequest(f"a search of {len(words)} terms (at most {MOST})")
    return [_term(word, now) for word in words]


# A word is a list of characters, those that were quoted marked by a second one in front.
_QUOTED = "\0"


def _words(text: str) -> Iterator[list[str]]:
    word: list[str] = []
    inside = begun = False
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if inside and char == "\\" and text[at : at + 1] in ('"', "\\") and at < len(text):
            word.append(_QUOTED + text[at])
            at += 1
        elif char == '"':
            inside, begun = not inside, True
        elif inside:
            word.append(_QUOTED + char)
        elif char.isspace():
            if word or begun:
                yield word
            word, begun = [], False
        else:
            word.append(char)
    if inside:
        raise BadRequest(f"a double quote is not closed: {text}")
    if word or begun:
        yield word


def _plain(word: list[str]) -> str:
    return "".join(char[-1] for char in word)


def _term(word: list[str], now: float) -> Term:
    shown = _plain(word)
    negated = word[:1] == ["!"]
    if negated:
        word = word[1:]
    if not word:
        raise BadRequest(f"an empty term: {shown!r}")
    place = next((n for n, char in enumerate(word) if char in ("=", ":")), None)
    if place is not None and word[place] == ":":
        key, value = _plain(word[:place]), _plain(word[place + 1 :])
        if key in ("state", "label", "alarm", "verdict", "path", "since", "until"):
            if not value:
                raise BadRequest(f"{shown} says no {key}")
            return _keyed(key, value, negated, now)
        place = word.index("=") if "=" in word else None
    if place is None:
        term: JobPart | ArgHas | ArgIs = JobPart(lower(_plain(word)))
    elif place == 0:
        raise BadRequest(f"{shown} names no arg")
    elif word[place + 1 : place + 2] == ["="]:
        term = ArgIs(_plain(word[:place]), _plain(word[place + 2 :]))
    else:
        term = ArgHas(_plain(word[:place]), lower(_plain(word[place + 1 :])))
    return Not(term) if negated else term


def _keyed(key: str, value: str, negated: bool, now: float) -> Term:
    if key == "label":
        return Not(Label(value)) if negated else Label(value)
    if key == "path":
        under = JobUnder(value.strip("/"))
        if not under.path:
            raise BadRequest(f"path:{value} names no path")
        return Not(under) if negated else under
    if key == "state":
        states = frozenset(state_like(name) for name in value.split(","))
        return StateIn(frozenset(State) - states if negated else states)
    if key in ("alarm", "verdict"):
        name_marks = _alarm if key == "alarm" else _verdicts
        marked = Marked(frozenset(mark for name in value.split(",") for mark in name_marks(name)))
        return Not(marked) if negated else marked
    time = instant(value, now)
    return Since(time) if (key == "since") != negated else Until(time)


def state_like(text: str) -> State:
    """The state of this name, or the only one that begins so, in any case. Raises BadRequest."""
    name = lower(text)
    found = [state for state in State if name and state.value.startswith(name)]
    if name in found:
        return State(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRequest(f"ambiguous state: {text} ({', '.join(state.value for state in found)})")
    raise BadRequest(f"not a state: {text!r} (known: {', '.join(state.value for state in State)})")


def _alarm(text: str) -> list[str]:
    name = lower(text)
    if name not in ALARMS:
        raise BadRequest(f"not an alarm: {text!r} (known: {', '.join(ALARMS)})")
    return [name]


def _verdicts(text: str) -> list[str]:
    ends = FINISHED if lower(text) == "any" else {state_like(text)}
    if not ends <= FINISHED:
        known = ", ".join(sorted(state.value for state in FINISHED))
        raise BadRequest(f"not how a program ends: {text!r} (known: any, {known})")
    return [f"verdict:{state.value}" for state in ends]


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def instant(text: str, now: float) -> float:
    """The instant that `since:` or `until:` names. Raises BadRequest."""
    if text == "now":
        return now
    try:
        return parse_time(f"{text}T00:00:00Z" if _DATE.fullmatch(text) else text)
    except ValueError:
        pass
    try:
        return now - parse_duration(text)
    except ValueError:
        raise BadRequest(
            f"no time: {text} (write 2031-05-06T07:08:09Z, 2031-05-06, now, or 2h for two hours ago)"
        ) from None
