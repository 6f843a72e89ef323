"""The template language: what it says, what it refuses, and how it says so."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from apsislib import templates
from apsislib.calendars import Calendars
from apsislib.errors import BadRequest, FieldError
from apsislib.templates import expand

ARGS = {
    "date": "2024-01-08",
    "time": "2024-01-08T12:00:00+00:00",
    "region": "eu",
    "count": "3",
    "empty": "",
}
NAMES = templates.names(ARGS, "r7", "etl/load", Calendars(None).get)
MANUAL = Path(__file__).parent.parent / "docs" / "templates.md"


def message(text: str, names: Any = NAMES) -> str:
    """What is wrong with `text`."""
    with pytest.raises(FieldError) as error:
        expand(text, names)
    assert isinstance(error.value, BadRequest) and "\n" not in error.value.message
    assert error.value.__cause__ is None and error.value.__context__ is None
    return error.value.message


# -- what it says


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{{ Date('2024-01-31') + 1 }}", "2024-02-01"),
        ("{{ get_calendar('Mon-Fri').shift(date, -1) }}", "2024-01-05"),
        ("{{ get_calendar('Mon-Fri').before(date) }}", "2024-01-08"),
        ("{{ get_calendar('Mon-Fri').before(Date(date) - 1) }}", "2024-01-05"),
        ("{{ date in get_calendar('Mon-Fri') }}", "True"),
        ("{{ format(Date(date), '%Y%m%d') }}", "20240108"),
        ("{{ to_local(time, 'America/New_York').daytime }}", "07:00:00"),
        ("{{ from_local((date, '09:30:00'), 'America/New_York') }}", "2024-01-08T14:30:00+00:00"),
        ("{{ 1/2 }}", "0.5"),
        ("{{ None }} {{ true }} {{ False }} {{ 1 + 1 }}", "None True False 2"),
        ("{{ Time(time) - 60 }}", "2024-01-08T11:59:00+00:00"),
        ("{{ TimeZone('Asia/Tokyo') }}", "Asia/Tokyo"),
        ("{{ Daytime('09:30:00') + 90 }}", "09:31:30"),
        ("{{ Date(date).month }} {{ Date(date).weekday }} {{ Date(date).month + 0 }}", "Jan Mon 1"),
        ("{{ run_id }} of {{ job_id }}", "r7 of etl/load"),
        ("{{ date.replace('-', '') }}", "20240108"),
        ("{{ '{:05d}'.format(3) }} {{ '%s-%03d' % (region, 7) }}", "00003 eu-007"),
        ("{{ '{a[x]} {}'.format(1, a={'x': 2}) }} {{ '{x}'.format_map({'x': 1}) }}", "2 1 1"),
        ("{{ date[:4] }} {{ date[-2:] }} {{ region ~ 1 }}", "2024 08 eu1"),
        ("{{ count | int + 1 }}", "4"),
        ("{{ region | upper }} {{ ['b', 'a'] | sort | join('-') }}", "EU a-b"),
        ("{{ ['a', 'b'] | map('upper') | list }}", "['A', 'B']"),
        ("{{ ['a', 'b'] | map('upper') | first }}", "A"),
        ("{{ [1, 2, 3] | select('odd') | sum }}", "4"),
        ("{{ {'a': [1, 2]} | tojson }}", '{"a": [1, 2]}'),
        ("{{ nothing | default('d') }} {{ nothing is defined }} {{ date is defined }}", "d False True"),
        ("{{ date.nothing | default('d') }}", "d"),
        ("{{ 'a' if region == 'eu' else 'b' }}{{ 'gone' if false }}", "a"),
        ("{% if region == 'us' %}1{% elif region in ['eu'] %}2{% else %}3{% endif %}", "2"),
        ("{% for i in range(3) %}{{ i }}{% if not loop.last %},{% endif %}{% endfor %}", "0,1,2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=1"),
        ("{% for i in [1, 2, 3, 4] if i is even %}{{ i }}{% endfor %}", "24"),
        ("{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "123"),
        ("{% set x = Date(date) %}{{ x.year }}", "2024"),
        ("{% set x %}<{{ region }}>{% endset %}{{ x }}", "<eu>"),
        (
            "{% set n = namespace(a=1) %}{% for i in range(4) %}{% set n.a = n.a * 2 %}{% endfor %}{{ n.a }}",
            "16",
        ),
        (
            "{% set xs = [] %}{% for i in range(3) %}{% set _ = xs.append(i) %}{% endfor %}{{ xs }}",
            "[0, 1, 2]",
        ),
        ("{% macro m(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ m(1) }}{{ m(m(3), y=4) }}", "<12><<32>4>"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "[x]"),
        ("{% filter upper %}a{{ region }}{% endfilter %}", "AEU"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "1"),
        ("a{# nothing #}b", "ab"),
        ("a {%- if true -%} b {%- endif -%} c", "abc"),
        ("{% raw %}${#x[@]} {{ date }}{% endraw %}", "${#x[@]} {{ date }}"),
        ("{{ '<a>' }}", "<a>"),
        ("{{ Date(date).std.strftime('%d/%m') }}", "08/01"),
    ],
)
def test_a_template_expands_to(text: str, result: str) -> None:
    assert expand(text, NAMES) == result


def test_args_are_inserted_as_they_are_and_never_expanded_again() -> None:
    assert expand("{{ x }}", {"x": "{{ y }} {% if %} {#"}) == "{{ y }} {% if %} {#"


def test_an_arg_hides_anything_else_of_its_name() -> None:
    names = templates.names({"run_id": "a", "Date": "b", "range": "c"}, "r7", "job", Calendars(None).get)
    assert expand("{{ run_id }}{{ Date }}{{ range }}{{ job_id }}", names) == "abcjob"


def test_without_a_run_its_id_is_none() -> None:
    assert expand("{{ run_id }}", templates.names({}, None, "job", Calendars(None).get)) == "None"


@pytest.mark.parametrize("mark", ["", "{{ '' }}"])
def test_one_line_end_at_the_end_is_dropped_and_the_others_become_newlines(mark: str) -> None:
    for text, result in (
        ("echo hi\n", "echo hi"),
        ("echo hi\n\n", "echo hi\n"),
        ("a\r\nb\r\n", "a\nb"),
        ("a\rb", "a\nb"),
        ("", ""),
        ("\n", ""),
        ("${x} } # {", "${x} } # {"),
    ):
        assert expand(mark + text, NAMES) == result


def test_a_text_without_marks_may_be_of_any_length() -> None:
    assert expand("x" * 1_000_000, {}) == "x" * 1_000_000


def test_what_is_a_template() -> None:
    assert [templates.has_template(t) for t in ("{{ x }}", "{% x", "{# x #}", "{ x }", "}}", "")] == [
        True
    ] * 3 + [False] * 3


# -- what it refuses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ nothing }}", "name 'nothing' is not defined"),
        ("{{ nothing.x }}", "name 'nothing' is not defined"),
        ("{{ nothing + 1 }}", "name 'nothing' is not defined"),
        ("{{ [nothing] }}", "name 'nothing' is not defined"),
        ("{% if nothing %}{% endif %}", "name 'nothing' is not defined"),
        ("{% for x in nothing %}{% endfor %}", "name 'nothing' is not defined"),
        ("{{ now }}", "name 'now' is not defined"),
        ("{{ Date(date).nothing }}", "apsislib.dates.Date object has no attribute or item 'nothing'"),
        ("{{ date.year }}", "str object has no attribute or item 'year' (a string: write Date(x).year)"),
        ("{{ {}['a'] }}", "dict object has no attribute or item 'a'"),
        ("{{ date + 1 }}", 'can only concatenate str (not "int") to str (' + templates.HINT_STRING + ")"),
        ("{{ Date('2024-1-31') }}", "can't parse as date: '2024-1-31'"),
        (
            "{{ Date(date) == date }}{{ Date(date) < date }}",
            "'<' not supported between instances of 'Date' and 'str'",
        ),
        ("{{ 1/0 }}", "division by zero"),
        (
            "{{ get_calendar('nonesuch').name }}",
            "no such calendar: nonesuch (no calendar directory is configured)",
        ),
        ("{{ TimeZone('Nowhere') }}", "unknown time zone: Nowhere"),
        ("{{ from_local(('2024-03-10', '02:30:00'), 'America/New_York') }}", "local time does not exist"),
        ("{{ 1 + }}", "unexpected 'end of print statement'"),
        ("{{ date", "unexpected end of template, expected 'end of print statement'"),
        ("{% frobnicate %}", "Encountered unknown tag 'frobnicate'"),
        ("{{ date | frobnicate }}", "No filter named 'frobnicate'"),
        ("{{ date is frobnicated }}", "No test named 'frobnicated'"),
        ("echo ${#files[@]}", f"Missing end of comment tag ({templates.HINT_COMMENT})"),
        ("{% include 'x' %}", "a template can't include, import or extend another, and has no blocks"),
        ("{% extends 'x' %}", "a template can't include"),
        ("{% import 'x' as x %}", "a template can't include"),
        ("{% block x %}{% endblock %}", "a template can't include"),
        ("one\ntwo {{ nothing }}", "name 'nothing' is not defined (line 2 of the template)"),
        ("one\n\n{{ 1 + }}", "unexpected 'end of print statement' (line 3 of the template)"),
    ],
)
def test_an_error_says_in_one_line_what_is_wrong(text: str, expected: str) -> None:
    assert message(text).startswith(expected)


def test_a_long_error_is_cut() -> None:
    assert len(message("{{ Date('x' * 10000) }}")) < 400


@pytest.mark.parametrize(
    "text",
    [
        "{{ date.__class__ }}",
        "{{ date['__class__'] }}",
        "{{ date | attr('__class__') }}",
        "{{ [date] | map(attribute='__class__') | list }}",
        "{{ [date] | map('attr', '__class__') | list }}",
        "{{ [date, date] | sort(attribute='__class__') }}",
        "{{ '{0.__class__}'.format(date) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ '{0.__self__}'.format(date.upper) }}",
        "{{ lipsum.__globals__ }}",
        "{{ from_local.__globals__ }}",
        "{{ from_local.__code__ }}",
        "{{ cycler.__init__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ namespace().__dict__ }}",
        "{{ Date.mro() }}",
        "{{ Date.__subclasses__() }}",
        "{{ Date(date)._value }}",
        "{{ Date(date).std.today() }}",
        "{{ Time(time).std.now() }}",
        "{{ get_calendar('all')._days }}",
        "{{ get_calendar('all').shift.__func__ }}",
        "{{ Time(time).std.tzinfo.__reduce__ }}",
        "{{ (1).to_bytes(10, 'big') }}",
        "{{ (1).from_bytes(date.encode(), 'big') }}",
        "{{ Date(date).month.to_bytes(10, 'big') }}",
        "{{ date.translate({}) }}",
        "{{ date.maketrans('a', 'b') }}",
        "{{ dict.fromkeys(range(10)) }}",
        "{% macro m() %}{% endmacro %}{{ m._func }}",
        "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_but_its_names(text: str) -> None:
    said = message(text)
    assert "unsafe" in said or "has no attribute" in said or "is not defined" in said, said


def test_no_template_can_name_the_meter() -> None:
    for text in ("{{ 1 | weigh }}", "{{ 1 | spend(0) }}", "{{ [1] | map(' spend', -1000) | list }}"):
        message(text)


def test_the_syntax_is_checked_without_any_names() -> None:
    templates.check_syntax("{{ nothing }} {{ 1/0 }}")
    templates.check_syntax("no template")
    with pytest.raises(FieldError, match="unexpected"):
        templates.check_syntax("{{ 1 + }}")
    with pytest.raises(FieldError, match="raw"):
        templates.check_syntax("echo ${#x}")


def test_python_has_nothing_to_warn_of_in_a_compiled_template() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert message("{{ 1[1:] }}") == "'int' object is not subscriptable"
        assert expand("{{ 'abc'[1:] }}{{ (1, 2)[:1] }}", {}) == "bc(1,)"


def test_templates_expand_on_many_threads_at_once() -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        names = {**NAMES, "n": str(number)}
        for turn in range(100):
            text = "{% for i in range(20) %}{{ n }}{% endfor %}" + f"{{# {turn} #}}"
            if expand(text, names) != str(number) * 20:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,), name=f"expand-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- the manual

EXAMPLE = re.compile(r"```jinja\n(.*?)\n```\n\n```text\n(.*?)\n```", re.DOTALL)
ROW = re.compile(r"^\| `([^`]*\{[{%#][^`]*)` \| `([^`]*)` \|$", re.MULTILINE)


def manual() -> list[tuple[str, str]]:
    text = MANUAL.read_text()
    rows = [(a.replace("\\|", "|"), b.replace("\\|", "|")) for a, b in ROW.findall(text)]
    return rows + EXAMPLE.findall(text)


@pytest.mark.parametrize(("text", "result"), manual())
def test_each_example_of_the_manual_does_what_it_says(text: str, result: str) -> None:
    if result.startswith("error: "):
        assert message(text) == result.removeprefix("error: ")
    else:
        assert expand(text, NAMES) == result


def test_the_manual_has_no_example_that_is_not_tried() -> None:
    text = MANUAL.read_text()
    assert len(manual()) > 60
    assert text.count("```jinja") == len(EXAMPLE.findall(text))
    marked = [line for line in text.splitlines() if line.startswith("| `") and ("{{" in line or "{%" in line)]
    assert len(marked) == len(ROW.findall(text))


def test_the_manual_names_every_limit() -> None:
    text = MANUAL.read_text()
    from apsislib import meter

    for limit in (meter.SIZE, meter.WIDTH, meter.FORMAT, meter.BITS, meter.DEPTH, templates.TOKENS):
        assert f"{limit:,}" in text, limit
