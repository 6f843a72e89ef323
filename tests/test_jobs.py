"""Job files: which are read, what their keys mean, and what is said of every mistake."""

import json
import os
import pickle
import shlex
from dataclasses import dataclass, replace

import pytest

from apsislib.calendars import Calendars
from apsislib.errors import BadRequest, FieldError, NotFound
from apsislib.jobs import (
    JobErrors,
    JobSet,
    Kinds,
    check,
    check_retention,
    check_scheduled,
    load_dir,
    parse_job,
    read_dir,
)
from apsislib.runs import Limits
from apsislib.states import State
from apsislib.times import parse_time

NOW = parse_time("2026-03-02T12:00:00Z")  # a Monday


# -- programs, as the layer above would give them -------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A program whose fields are all templates."""

    fields: tuple

    def bind(self, expand):
        def expanded(value):
            return [expand(str(v)) for v in value] if isinstance(value, list) else expand(str(value))

        return replace(self, fields=tuple((k, expanded(v)) for k, v in self.fields))

    def limits(self):
        return Limits()

    def to_json(self):
        return {**dict(self.fields), "str": str(self)}

    def __str__(self):
        return shlex.join(map(str, dict(self.fields).values()))


KNOWN = {
    "no-op": {"duration", "success"},
    "procstar": {"argv", "sudo_user"},
    "procstar-shell": {"command", "sudo_user"},
}


OLD = {"shell": "procstar-shell", "program": "procstar", "apsis.program.process.ProcessProgram": "procstar"}


def program(mapping):
    if mapping["type"] == "broken":
        raise RuntimeError("boom")
    mapping = {**mapping, "type": OLD.get(mapping["type"], mapping["type"])}
    if mapping["type"] not in KNOWN:
        raise FieldError(f"unknown program type: {mapping['type']}", ["type"])
    surplus = [k for k in mapping if k not in KNOWN[mapping["type"]] | {"type"}]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)}", [surplus[0]])
    return Text(tuple(mapping.items()))


KINDS = Kinds(program=program)
NOOP = "program: {type: no-op}\n"


@pytest.fixture
def write(tmp_path):
    """Writes job files; answers their directory."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "jobs" / (name.replace("__", "/") + ".yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return tmp_path / "jobs"

    return write


@pytest.fixture
def load(write):
    def load(**files):
        return load_dir(write(**files), KINDS)

    return load


@pytest.fixture
def wrong(write):
    """(job ID, line, message) of every error in these files."""

    def wrong(**files):
        with pytest.raises(JobErrors) as caught:
            load_dir(write(**files), KINDS)
        return [(e.job_id, e.line, e.message) for e in caught.value.errors]

    return wrong


def test_a_users_own_kind_may_have_an_old_name(write):
    own = Kinds(program=lambda mapping: Text(tuple(mapping.items())))
    assert load_dir(write(a="program: {type: shell}"), own).warnings == ()


# -- which files ----------------------------------------------------------------------------------------


def test_a_job_is_a_yaml_file_and_its_id_the_path(write):
    root = write(b=NOOP, foo=NOOP, foo__bar=NOOP, **{"x y__z": NOOP, "e.f": NOOP, "ä__😀": NOOP})
    for name in ("n.yml", "n.YAML", "n", ".hidden.yaml", ".git/d.yaml", ".yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("not: a job")
    assert list(load_dir(root, KINDS).jobs) == ["b", "e.f", "foo", "foo/bar", "x y/z", "ä/😀"]


def test_a_linked_file_is_read_and_a_linked_directory_is_not(write, tmp_path):
    root = write(a=NOOP)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.yaml").write_text(NOOP)
    (root / "link.yaml").symlink_to(tmp_path / "other" / "x.yaml")
    (root / "dir").symlink_to(tmp_path / "other")
    assert list(load_dir(root, KINDS).jobs) == ["a", "link"]


def test_what_looks_like_a_job_file_and_cannot_be_read_is_that_jobs_error(write):
    root = write(a=NOOP)
    (root / "gone.yaml").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.yaml")
    (root / "d.yaml").mkdir()
    (root / os.fsdecode(b"\xff.yaml")).write_text(NOOP)
    with pytest.raises(JobErrors) as caught:
        load_dir(root, KINDS)
    assert [(e.job_id, e.message) for e in caught.value.errors] == [
        (None, "the file's name is not UTF-8; rename it"),
        ("gone", "can't be read: No such file or directory"),
        ("pipe", "not a file; remove it or rename it"),
    ]


def test_a_directory_that_is_not_there_or_goes_away_is_one_clear_error(tmp_path, write):
    with pytest.raises(JobErrors) as caught:
        load_dir(tmp_path / "none", KINDS)
    [error] = caught.value.errors
    assert str(error) == f"{tmp_path}/none: not a directory; say where the job files are with job_dir"
    assert str(caught.value) == f"errors loading jobs in {tmp_path}/none"

    root = write(a=NOOP, b=NOOP, c=NOOP)

    def vanish(mapping):
        if root.exists():
            root.rename(tmp_path / "elsewhere")
        return program(mapping)

    with pytest.raises(JobErrors) as caught:
        load_dir(root, Kinds(program=vanish))
    assert [e.message.split(";")[0] for e in caught.value.errors] == ["not a directory"]


def test_a_directory_that_cannot_be_listed_is_an_error_and_not_no_jobs(write, monkeypatch):
    root = write(a=NOOP, sub__b=NOOP)
    scandir = os.scandir

    def refuse(path):  # root may read everything, so the mode of the directory would not do
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(JobErrors) as caught:
        load_dir(root, KINDS)
    assert [str(e) for e in caught.value.errors] == [f"{root}/sub: can't be listed: Permission denied"]


def test_an_empty_directory_has_no_jobs(tmp_path):
    assert dict(load_dir(tmp_path, KINDS).jobs) == {}


# -- keys -----------------------------------------------------------------------------------------------


def test_a_full_job(load):
    jobs = load(
        a="""
params: [date, region]
schedule:
  start: {type: daily, tz: UTC, daytime: "09:30:00", args: {region: eu}}
  stop: {type: duration, duration: 30 min}
program: {type: no-op}
condition: {type: dependency, job_id: b, args: {x: "{{ date }}"}}
action: {type: schedule, job_id: b, args: {x: 1}, if: {states: failure}}
successors: [b, {job_id: c, args: {y: 2}}]
metadata: {labels: blue, description: "*x*", since: 2026-01-01}
"""
    )
    job = jobs.jobs["a"]
    assert job.params == ("date", "region") and not job.ad_hoc
    assert len(job.schedules) == 1 and len(job.conditions) == 1
    assert [(a.job_id, a.states) for a in job.actions] == [
        ("b", {State.FAILURE}),
        ("b", {State.SUCCESS}),
        ("c", {State.SUCCESS}),
    ]
    assert job.metadata == {"labels": ["blue"], "description": "*x*", "since": "2026-01-01"}
    assert jobs.place("a", "condition", 0)[1] == 7
    assert jobs.place("a", "action", 2)[1] == 9
    assert jobs.place("a") == (job.source, None)


@pytest.mark.parametrize(
    "text, params",
    [
        ("params: [b, a, b]", ("a", "b")),
        ("params: x", ("x",)),
        ("params: {a, b}", ("a", "b")),
        ("params: [a-b, c d, 1, 2024-01-01]", ("1", "2024-01-01", "a-b", "c d")),
        ("params:", ()),
        ("params: []", ()),
    ],
)
def test_params(load, text, params):
    assert load(a=NOOP + text).jobs["a"].params == params


def test_nulls_mean_none(load):
    job = load(
        a=NOOP + "schedule:\ncondition:\naction:\nsuccessors:\nmetadata:\nparams:\nad_hoc:\njob_id:\n"
    ).jobs["a"]
    assert (job.schedules, job.conditions, job.actions, job.metadata) == ((), (), (), {"labels": []})


@pytest.mark.parametrize(
    "labels, expected",
    [("", []), ("x", ["x"]), ("[1, true, 2024-01-01]", ["1", "True", "2024-01-01"]), ("[]", [])],
)
def test_labels_are_texts(load, labels, expected):
    assert load(a=NOOP + f"metadata: {{labels: {labels}}}").jobs["a"].metadata["labels"] == expected


def test_metadata_can_be_written_as_json(load):
    text = (
        NOOP
        + "metadata: {d: 2024-01-01, t: 2024-01-01T01:02:03Z, n: .nan, 1: [.inf, {2: x}], ok: [1, 2.5, ~]}"
    )
    metadata = load(a=text).jobs["a"].metadata
    assert json.loads(json.dumps(metadata, allow_nan=False)) == {
        "d": "2024-01-01",
        "t": "2024-01-01T01:02:03+00:00",
        "n": "nan",
        "1": ["inf", {"2": "x"}],
        "ok": [1, 2.5, None],
        "labels": [],
    }


def test_an_anchor_may_be_used_more_than_once(load):
    job = load(a=NOOP + "condition:\n- &c {type: const, value: true, enabled: true}\n- *c\n").jobs["a"]
    assert [c.value for c in job.conditions] == [True, True]


@pytest.mark.parametrize(
    "text, known",
    [
        ("program: echo hi", {"type": "procstar-shell", "command": "echo hi"}),
        ("program: [echo, 1]", {"type": "procstar", "argv": ["echo", 1]}),
        ("program: {type: shell, command: x}", {"type": "procstar-shell", "command": "x"}),
        ("program: {type: program, argv: [x]}", {"type": "procstar", "argv": ["x"]}),
        (
            "program: {type: apsis.program.process.ProcessProgram, argv: [x]}",
            {"type": "procstar", "argv": ["x"]},
        ),
    ],
)
def test_programs_of_older_releases_are_taken_with_a_warning(load, text, known):
    jobs = load(a="# c\n" + text)
    assert jobs.jobs["a"].json["program"] == known
    [warning] = jobs.warnings
    assert "a.yaml:2: program: " in warning and f"write a mapping of type {known['type']}" in warning


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("", 1, "job file must be a mapping"),
        ("hello", 1, "job file must be a mapping"),
        ("# c\n- a\n", 2, "job file must be a mapping"),
        ("params: []\n", 1, "missing key: program"),
        ("program:\n", 1, "program: missing key: program"),
        ("params: [x]\nprogram: {}\n", 2, "program: missing type"),
        ("program: 3\n", 1, "program: a program must be a mapping with a type: 3"),
        ("program:\n  type: t\n", 2, "program.type: unknown program type: t"),
        ("program:\n  type: no-op\n  a: 1\n  b: 2\n", 3, "program: unexpected keys: a b"),
        ("program:\n  type: broken\n", 1, "program: RuntimeError: boom"),
        (NOOP + "job_id: other\n", 2, "job_id: mismatch: 'other' is not 'a'; remove the key"),
        (
            NOOP + "conditions: []\nactions: []\n",
            2,
            "unexpected keys: conditions actions (did you mean condition, action?)",
        ),
        (NOOP + "params:\n- a\n- [b]\n", 4, "params[1]: a param must be a name: ['b']"),
        (NOOP + "params: [~]\n", 2, "params[0]: a param must be a name: None"),
        (NOOP + "metadata: 3\n", 2, "metadata: metadata must be a mapping"),
        (
            NOOP + "metadata:\n  labels:\n  - {a: b}\n",
            4,
            "metadata.labels[0]: a label must be a text: {'a': 'b'}",
        ),
        (NOOP + "ad_hoc: maybe\n", 2, "ad_hoc: must be true or false: 'maybe'"),
        (
            NOOP + "condition:\n- {type: const, value: true}\n- type: nope\n",
            4,
            "condition[1].type: unknown condition type: nope",
        ),
        (
            NOOP + "condition:\n  enabled: 3\n  type: const\n",
            3,
            "condition.enabled: enabled must be a bool or a quoted string",
        ),
        (NOOP + "successors:\n- a\n- 3\n", 4, "successors[1]: a successor must be a job ID"),
        (
            NOOP
            + "schedule:\n- type: interval\n  interval: 1h\n- type: daily\n  daytime: 1:00:00\n  tz: Mars\n",
            7,
            "schedule[1].tz: unknown time zone: Mars",
        ),
        (NOOP + "schedule: [~]\n", 2, "schedule[0]: "),
        (NOOP + "program: {type: no-op}\n", 2, 'found duplicate key "program" with value'),
        (b"a: \xff", 1, "not UTF-8"),
        ("a: \x07", 1, "control character"),
        ("program: {{ x }}", 1, "a key must be a plain value; put quotes"),
        (NOOP + "---\n" + NOOP, 2, "more than one document"),
    ],
)
def test_a_mistake_is_told_with_its_line(wrong, text, line, message):
    [(job_id, where, said)] = wrong(a=text)
    assert (job_id, where) == ("a", line) and said.startswith(message)


def test_all_mistakes_of_all_files_are_told_in_order(wrong):
    errors = wrong(
        b="program: {type: x}\nparams: [~]\nextra: 1\naction: 3\n",
        a="program: [\n",
        c=NOOP,
        sub__d="metadata: 1\n",
    )
    assert [(job_id, line) for job_id, line, _ in errors] == [
        ("a", 2),
        ("b", 1),
        ("b", 2),
        ("b", 3),
        ("b", 4),
        ("sub/d", 1),
        ("sub/d", 1),
    ]


def test_an_ad_hoc_flag_in_a_file_means_nothing(load):
    jobs = load(a=NOOP + "ad_hoc: true\n")
    assert not jobs.jobs["a"].ad_hoc and "ad_hoc: has no meaning" in jobs.warnings[0]


# -- jobs from elsewhere --------------------------------------------------------------------------------


def test_an_ad_hoc_job_is_parsed_like_a_file():
    mapping = {"params": ["d"], "program": {"type": "no-op"}, "metadata": {"labels": "x"}}
    job = parse_job(mapping, "adhoc-xyz", KINDS, ad_hoc=True)
    assert (job.job_id, job.ad_hoc, job.source, job.params) == ("adhoc-xyz", True, None, ("d",))


def test_what_is_stored_of_a_job_is_parsed_again_to_the_same(load):
    job = load(
        a=NOOP + "params: [d]\nschedule: [{type: interval, interval: 1h, args: {str: x}},"
        " {start: {type: interval, interval: 1h}, stop: {type: duration, duration: 5}}]\n"
        "condition: [{type: max_running}, {type: dependency, job_id: b, exist: true}]\n"
        "action: {type: schedule, job_id: b, args: {str: y}}\nsuccessors: c\nmetadata: {str: z}\n"
    ).jobs["a"]
    assert "str" not in job.json["condition"][0] and job.json["action"][0]["args"] == {"str": "y"}
    stored = json.loads(json.dumps(job.json))
    assert parse_job(stored, "a", KINDS).json == job.json


def test_mistakes_in_a_mapping_from_elsewhere_are_told_together():
    with pytest.raises(FieldError, match="unknown program type: t; metadata: metadata must be") as caught:
        parse_job({"program": {"type": "t"}, "metadata": 3}, "x", KINDS)
    assert caught.value.keys == ("program", "type")
    for value in (None, [], "x", 3):
        with pytest.raises(FieldError, match="job must be a mapping"):
            parse_job(value, "x", KINDS)


# -- a set of jobs --------------------------------------------------------------------------------------


@pytest.fixture
def named(load):
    def named(*names):
        return load(**{name.replace("/", "__"): NOOP for name in names})

    return named


def test_a_job_is_found_by_its_id_or_by_words_of_it(named):
    jobs = named("load/nightly", "load/hourly", "other", "x/load")
    assert jobs.match("load/nightly").job_id == "load/nightly"
    assert jobs.match("night load").job_id == "load/nightly"
    assert jobs.match("oth").job_id == "other"
    assert jobs.match("x-l").job_id == "x/load"
    with pytest.raises(NotFound, match="^no job id match: Night$") as caught:
        jobs.match("Night")
    assert caught.value.status == 400
    with pytest.raises(BadRequest, match="^ambiguous job id: load/hourly, load/nightly, x/load$"):
        jobs.match("load")
    with pytest.raises(BadRequest, match="ambiguous"):
        jobs.match("")


def test_at_most_eight_names_are_told_of_an_ambiguous_id(named):
    jobs = named(*(f"j{i}" for i in range(9)))
    with pytest.raises(BadRequest, match=r"^ambiguous job id: j0, j1, j2, j3, j4, j5, j6, j7 …$"):
        jobs.match("j")


def test_a_set_of_jobs_cannot_be_changed_and_travels(named):
    jobs = named("a", "b/c")
    with pytest.raises(TypeError):
        jobs.jobs["x"] = 1
    again = pickle.loads(pickle.dumps(jobs))
    assert list(again.jobs) == ["a", "b/c"] and again.match("c").job_id == "b/c"


def test_a_diff_tells_what_a_reload_has_to_do(tmp_path):
    def jobs(**files):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        for name, text in files.items():
            (root / f"{name}.yaml").write_text(text)
        return load_dir(root, KINDS)

    stop = "schedule: {start: {type: interval, interval: 1h}, stop: {type: duration, duration: %s}}\n"
    old = jobs(
        gone=NOOP,
        same=NOOP + stop % 60 + "params: [a, b]\n",
        stop=NOOP + stop % 60,
        words=NOOP + "metadata: {description: a}\n",
        late=NOOP + stop % 60,
        both=NOOP + "metadata: {description: a}\n",
        program=NOOP,
        params=NOOP,
    )
    new = jobs(
        added=NOOP,
        same="params: {b, a}\n# a comment\n" + stop % "1 min" + NOOP,
        stop=NOOP + stop % 61,
        words=NOOP + "metadata: {description: b}\n",
        late=NOOP + stop % 60 + "catch_up: latest\n",
        both=NOOP + "metadata: {description: b}\nparams: [x]\n",
        program="program: {type: no-op, duration: 3}\n",
        params=NOOP + "params: x\n",
    )
    diff = old.diff(new)
    assert (diff.removed, diff.added) == (["gone"], ["added"])
    assert (diff.changed, diff.metadata) == (["both", "params", "program", "stop"], ["late", "words"])
    nothing = new.diff(new)
    assert not (nothing.removed or nothing.added or nothing.changed or nothing.metadata)
    assert JobSet().diff(new).added == sorted(new.jobs)


# -- checks ---------------------------------------------------------------------------------------------

DAILY = "schedule: {type: daily, tz: UTC, daytime: '09:00:00'%s}\n"


@pytest.fixture
def checked(load):
    """(job ID, line, message) of what check finds in these files."""

    def checked(**files):
        return [(e.job_id, e.line, e.message) for e in check(load(**files), NOW, Calendars().get)]

    return checked


def test_a_job_that_is_right_passes(checked):
    assert not checked(
        a="params: [date, schedule_time]\n"
        "program: {type: procstar, argv: ['{{ Date(date) + 1 }}', '{{ run_id }}']}\n" + DAILY % "",
        b=NOOP + "params: [date]\nsuccessors: [{job_id: c, args: {date: '{{ Date(date) - 1 }}'}}]\n",
        c=NOOP + "params: [date]\n",
        d="params: [x]\nprogram: 'echo {{ x | default(1) }} {% for y in x %}{{ y }}{% endfor %}'\n",
    )


def test_args_that_are_no_params_are_warned_of_where_they_stand(load):
    one = load(a=NOOP + "params: [x]\nschedule:\n- {type: interval, interval: 1h, args: {x: 1,\n    y: 2}}\n")
    assert one.warnings[0].endswith("a.yaml:5: schedule[0].args.y: the job has no such param (x); remove it")
    start = "schedule:\n  start: {type: interval, interval: 1h, args: {y: 2}}\n"
    other = load(a=NOOP + start)
    said = "a.yaml:3: schedule.start.args.y: the job has no such param (none); remove it"
    assert other.warnings[0].endswith(said)


@pytest.mark.parametrize(
    "text, line, message",
    [
        (NOOP + "params: [date, x, y]\n" + DAILY % "", 3, "missing args (x, y) for job a"),
        (
            "program: 'echo {{ x }}'\n" + DAILY % "",
            1,
            "program.command: name 'x' is not defined (the job has no",
        ),
        ("program: 'echo {{ x }}'\n", 1, "name 'x' is not defined"),
        ("program: 'echo {{ x'\n", 1, "unexpected"),
        ("program: 'echo ${#x}'\n", 1, "Missing end of comment tag"),
        ("program: 'echo {{ get_calendar(\"workdays\") }}'\n", 1, "no such calendar: workdays"),
        (
            "program: 'echo {{ Date(date) }}'\nparams: date\n" + DAILY % ", args: {date: x}",
            1,
            "can't parse as date",
        ),
        (NOOP + DAILY % ", enabled: false" + "params: [x]\n", 2, "missing args (x) for job a"),
        (
            NOOP + "condition:\n- {type: const, value: true}\n- {type: dependency, job_id: zz}\n",
            4,
            "unknown job ID in condition: zz",
        ),
        (NOOP + DAILY % "" + "action: {type: schedule, job_id: zz}\n", 3, "unknown job ID in action: zz"),
        (NOOP + "successors: zz\n", 2, "unknown job ID in action: zz"),
        (
            NOOP
            + DAILY % ", args: {r: z}"
            + "params: r\ncondition: {type: dependency, job_id: 'z{{ r }}'}\n",
            4,
            "unknown job ID in condition: zz",
        ),
        (NOOP + "condition: {type: max_running, job_id: zz}\n", 2, "unknown job ID in condition: zz"),
        (
            NOOP + "condition: {type: dependency, job_id: j}\n",
            2,
            "missing arg in condition: param p of job j",
        ),
        (
            NOOP + DAILY % "" + "action: {type: schedule, job_id: j, args: {p: 1, q: 2}}\n",
            3,
            "extraneous arg in action: param q of job j",
        ),
        (
            NOOP + "params: [p]\naction: {type: schedule, job_id: j, args: {p: '{{ q }}'}}\n",
            3,
            "name 'q' is not defined",
        ),
        (
            NOOP + "params: [p]\ncondition: {type: dependency, job_id: '{{ q }}'}\n",
            3,
            "name 'q' is not defined",
        ),
    ],
)
def test_a_mistake_between_jobs_is_found(checked, text, line, message):
    [(job_id, where, said)] = checked(a=text, j=NOOP + "params: [p]\n")
    assert (job_id, where) == ("a", line) and message.lower() in said.lower()


def test_a_file_that_is_wrong_hides_no_mistake_of_another_and_makes_none(write):
    files = write(
        broken="program: {type: no-op\n",
        names=NOOP + "condition: {type: dependency, job_id: broken}\nsuccessors: broken\n",
        wrong=NOOP + "condition: {type: dependency, job_id: zz}\n",
    )
    found, errors = read_dir(files, KINDS)
    assert [e.job_id for e in errors] == ["broken"]
    more = check(found, NOW, Calendars().get, {e.job_id for e in errors})
    assert [(e.job_id, e.message) for e in more] == [("wrong", "unknown job ID in condition: zz")]


def test_both_kinds_of_check_are_always_made(checked):
    found = checked(
        a=NOOP + DAILY % "" + "condition: {type: dependency, job_id: j}\n"
        "action: {type: schedule, job_id: zz}\n",
        j=NOOP + "params: [p]\n",
    )
    assert [m for _, _, m in found] == [
        "unknown job ID in action: zz",
        "missing arg in condition: param p of job j",
        "condition[0]: no value for param p of job j",
    ]


def test_what_is_switched_off_may_name_what_is_not_there(checked):
    assert not checked(a=NOOP + "condition: {type: dependency, job_id: zz, enabled: false}\n" + DAILY % "")


def test_a_schedule_that_fires_no_more_is_no_error_and_its_job_is_checked_all_the_same(checked):
    past = NOOP + "params: [x]\nschedule: {type: explicit, times: ['2020-01-01T00:00:00Z']}\n"
    assert not checked(a=past)
    [(_, line, message)] = checked(a=past + "condition: {type: dependency, job_id: '{{ y }}'}\n")
    assert (line, message) == (4, "condition[0].job_id: name 'y' is not defined (the job's params: x)")


def test_what_depends_on_the_args_is_not_held_against_a_job_without_schedule(checked):
    assert not checked(
        a="params: [n, cal, date]\nprogram:\n- '{{ int(n) }}'\n- '{{ get_calendar(cal).shift(date, 1) }}'\n"
        "- '{{ date.nothing }}'\n- '{{ {\"a\": 1}[n] }}'\n".replace("int(n)", "n | int + 1")
    )


def test_the_same_mistake_is_told_once(checked):
    text = NOOP + "params: [x]\nschedule:\n" + "- {type: interval, interval: 1h}\n" * 3
    assert len(checked(a=text)) == 1


def test_a_check_never_raises(load):
    class Broken:
        enabled = True

        def after(self, start):
            raise RuntimeError("calendar ran out")

        def to_json(self):
            return {"type": "broken", "args": {}}

    jobs = load(a=NOOP)
    broken = JobSet([replace(jobs.jobs["a"], schedules=(Broken(),))])
    [error] = check(broken, NOW, Calendars().get)
    assert (error.job_id, error.message) == ("a", "RuntimeError: calendar ran out")
    assert check_scheduled(broken, NOW, Calendars().get) == []


def test_a_calendar_that_ended_is_no_error(write, tmp_path):
    (tmp_path / "old.cal").write_text("START 2019-01-01\nSTOP 2020-01-01\n2019-05-05\n")
    kinds = Kinds(program, Calendars(tmp_path))
    jobs = load_dir(write(a=NOOP + DAILY % ", calendar: old"), kinds)
    assert check(jobs, NOW, kinds.calendars.get) == []


# -- dependencies between schedules -----------------------------------------------------------------------


@pytest.fixture
def planned(load):
    def planned(max_wait=None, **files):
        found = check_scheduled(load(**files), NOW, Calendars().get, max_wait)
        return [(e.job_id, e.line, e.message) for e in found]

    return planned


def at(daytime, *depends, args="date", extra=""):
    conditions = "".join(f"- {{type: dependency, job_id: {d}}}\n" for d in depends)
    return (
        NOOP
        + f"params: [{args}]\n"
        + f"schedule: {{type: daily, tz: UTC, daytime: '{daytime}'{extra}}}\n"
        + (f"condition:\n{conditions}" if depends else "")
    )


def test_a_dependency_that_is_scheduled_is_fine(planned):
    assert not planned(a=at("10:00:00", "b"), b=at("09:00:00"))


def test_a_dependency_that_no_schedule_fulfils_is_told(planned):
    [found] = planned(a=at("10:00:00", "b"), b=NOOP + "params: [date]\n")
    assert found == ("a", 5, "scheduled run a(date=2026-03-03): dependency b(date=2026-03-03) not scheduled")
    [found] = planned(a=at("10:00:00", "b"), b=at("10:00:00", extra=", enabled: false"))
    assert "not scheduled" in found[2]


def test_what_check_reports_is_not_told_again(planned):
    assert not planned(a=at("10:00:00", "zz"), b=at("10:00:00", "'{{ zz }}'"), c=at("10:00:00", args="no"))


def test_a_dependency_that_is_switched_off_is_not_looked_at(planned):
    text = at("10:00:00") + "condition: {type: dependency, job_id: b, enabled: '{{ date == \"x\" }}'}\n"
    assert not planned(a=text, b=NOOP + "params: [date]\n")


def test_a_cycle_is_told_to_every_job_on_it(planned):
    found = planned(
        a=at("10:00:00", "b", args=""),
        b=at("10:00:00", "c", args=""),
        c=at("10:00:00", "a", args=""),
        d=at("10:00:00", "a", args=""),
        e=at("10:00:00", "e", args=""),
    )
    assert [(job_id, message) for job_id, _, message in found] == [
        ("a", "dependency cycle detected: a → b → c → a"),
        ("b", "dependency cycle detected: b → c → a → b"),
        ("c", "dependency cycle detected: c → a → b → c"),
        ("e", "dependency cycle detected: e → e"),
    ]


def test_a_long_chain_of_dependencies_is_no_cycle_and_no_recursion(planned):
    files = {f"j{i:04}": at("10:00:00", f"j{i + 1:04}", args="") for i in range(1500)}
    assert not planned(**files, j1500=at("10:00:00", args=""))


def test_a_run_that_will_wait_too_long_is_told_with_the_reason(planned):
    files = {
        "a": at("13:00:00", "b"),
        "b": at("13:30:00", "c"),
        "c": at("09:00:00", extra=", cal_shift: 1"),  # the next morning, for the same date
    }
    found = planned(**{**files, "c": at("09:00:00", extra=", date_shift: 1")}, max_wait=3600)
    assert [job_id for job_id, _, _ in found] == ["a", "b"]
    assert found[0][2].startswith(
        "scheduled run a(date=2026-03-02): not expected to start until 2026-03-03T09:00:00"
    )
    assert found[0][2].split("\n")[1].startswith("  dependency: b(date=2026-03-02)")
    assert found[0][2].split("\n")[2].startswith("    dependency: c(date=2026-03-02)")
    assert not planned(**files, max_wait=86400)


LATE = """params: [date]
schedule: {{type: daily, tz: UTC, daytime: "12:00:00"}}
condition:
  - {{type: const, value: true}}
  - type: dependency
    job_id: base
    args: {{date: "{{{{ Date(date) - {days} }}}}"}}
program: {{type: no-op}}
"""


def test_a_dependency_on_a_run_that_will_have_left_the_database_is_seen(load):
    jobs = load(
        base="params: [date]\nprogram: {type: no-op}\n",
        **{f"late{days}": LATE.format(days=days) for days in (7, 89, 100)},
    )
    now = parse_time("2026-05-01T06:00:00Z")
    (found,) = check_retention(jobs, now, None, 90 * 86400.0)
    assert (found.job_id, found.line) == ("late100", 5)
    assert found.message == (
        "the run base(date=2026-01-21) that it depends on, of 100 days before, will have left the database:"
        " runs.retention is 90 days"
    )
    assert check_retention(jobs, now, None, None) == []
    assert len(check_retention(jobs, now, None, 86400.0)) == 3
