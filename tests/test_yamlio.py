"""The YAML dialect: what each scalar means, where each key stands, and what is refused."""

import contextlib
import math
import pickle
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib.errors import JobError
from apsislib.yamlio import MAX_DEPTH, dump, line_of, load


def refused(text):
    with pytest.raises(JobError) as caught:
        load(text, "f.yaml")
    assert caught.value.path == "f.yaml"
    return caught.value.line, caught.value.message


@pytest.mark.parametrize(
    "text, value",
    [
        *[(t, True) for t in ("true", "True", "TRUE")],
        *[(t, False) for t in ("false", "False", "FALSE")],
        *[(t, t) for t in ("yes", "no", "on", "off", "y", "n", "YES", "Off", "tRue", "=", "+", ".", "a:b")],
        *[(t, None) for t in ("~", "null", "Null", "NULL", "")],
        ("012", 12),
        ("08", 8),
        ("0o14", 12),
        ("0x1F", 31),
        ("-0x1F", -31),
        ("0b11", 3),
        ("0x", "0x"),
        ("0b_", "0b_"),
        ("1_000", 1000),
        ("_1", "_1"),
        ("+5", 5),
        ("-7", -7),
        ("1e3", 1000.0),
        ("1e+3", 1000.0),
        ("1.5e3", 1500.0),
        ("1.e3", 1000.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("0.10", 0.1),
        ("1.2.3", "1.2.3"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("10:30:00", "10:30:00"),
        ("9:30:00", "9:30:00"),
        ("1:30", "1:30"),
        ("2024-01-01", date(2024, 1, 1)),
        ("2024-1-1", "2024-1-1"),
        ("20240101", 20240101),
        ("2024-01-01T00:00:00Z", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024-01-01t1:02:03.5Z", datetime(2024, 1, 1, 1, 2, 3, 500_000, tzinfo=UTC)),
        (
            "2024-01-01 00:00:00 -05:30",
            datetime(2024, 1, 1, tzinfo=timezone(-timedelta(hours=5, minutes=30))),
        ),
        ("2024-01-01T00:00:00", datetime(2024, 1, 1)),
        ("'012'", "012"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
        ("!!str 012", "012"),
        ("! 012", "012"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text, value):
    result = load(f"k: {text}\n", "f")["k"]
    assert result == value and type(result) is type(value)


def test_a_nan_is_one():
    assert math.isnan(load("[.NaN]", "f")[0])


@pytest.mark.parametrize("text", ["2024-02-30", "2024-01-01T25:00:00Z", "1" * 5000, "0x" + "f" * 5000])
def test_an_impossible_date_or_number_is_refused_with_its_line(text):
    line, message = refused(f"a: 1\nb: {text}\n")
    assert line == 2 and "put quotes" in message


def test_a_duplicate_key_is_refused_at_every_level_with_the_line_of_the_second():
    assert refused("a: 1\nb: 2\na: 3\n") == (
        3,
        'found duplicate key "a" with value "3" (original value: "1")',
    )
    line, message = refused("p:\n  - q:\n      command: x\n      type: t\n      command: y\n")
    assert (line, message) == (5, 'found duplicate key "command" with value "y" (original value: "x")')
    assert refused("{<<: {}, <<: {}}")[0] == 1


def test_every_key_and_item_keeps_its_line():
    doc = load("# c\na: 1\nb:\n  - x\n  - y: 1\n    z: {w:\n 3}\n1: one\n", "f")
    assert doc.line == 2 and doc.lines == {"a": 2, "b": 3, 1: 8}
    assert line_of(doc, ()) == 2
    assert line_of(doc, ("a", "deeper")) == 2
    assert line_of(doc, ("b", 0)) == 4
    assert line_of(doc, ("b", 1, "z")) == 6
    assert line_of(doc, ("b", 1, "z", "w")) == 6
    assert line_of(doc, ("b", 7)) == 3
    assert line_of(doc, ("1",)) == 8
    assert line_of(doc, ("nothing",)) == 2
    assert line_of({"plain": 1}, ("plain",)) is None


def test_an_alias_is_a_copy_of_its_anchor():
    doc = load("a: &x {type: t, l: [1]}\nb: *x\nc: [*x, &y 3, *y]\n", "f")
    assert doc["b"] == doc["a"] == doc["c"][0] and doc["c"][1:] == [3, 3]
    del doc["a"]["type"]
    doc["a"]["l"].append(2)
    assert doc["b"] == {"type": "t", "l": [1]} == doc["c"][0]
    assert line_of(doc, ("b", "type")) == 1


def test_merge_keys_fill_in_what_is_not_written():
    doc = load("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  z: 3\n  <<: [*a, *b]\nd: {<<: *b, y: 9}\n", "f")
    assert doc["c"] == {"x": 1, "y": 1, "z": 3}
    assert doc["d"] == {"y": 9, "z": 2}
    assert line_of(doc, ("c", "x")) == 1 and line_of(doc, ("c", "z")) == 4
    assert load('{"<<": 1}', "f") == {"<<": 1}
    assert refused("a: 1\n<<: 3\n") == (2, "<< merges mappings only; give it an alias of a mapping")


def test_aliases_that_cannot_be_are_refused():
    assert refused("a: &a [*a]") == (1, "alias *a contains itself")
    assert refused("a: 1\nb: *c") == (2, "alias *c has no anchor &c before it")


def test_a_billion_laughs_are_refused():
    text = "a0: &a0 [lol]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert "aliases expand to more than" in refused(text)[1]
    merge = "a0: &a0 {k: v}\n" + "".join(
        f"a{i}: &a{i} {{l: *a{i - 1}, m: *a{i - 1}}}\n" for i in range(1, 40)
    )
    assert "aliases expand to more than" in refused(merge)[1]
    chain = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2 * MAX_DEPTH))
    assert "levels deep by aliases" in refused(chain)[1]


@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 50_000, "- " * 50_000, "? " * 50_000])
def test_deep_nesting_is_an_error_and_not_the_end_of_the_process(text):
    assert "levels deep" in refused(text)[1]


@pytest.mark.parametrize("tag", ["!foo", "!!python/object/apply:os.system", "!!binary", "!!int", "!!set"])
def test_a_tag_is_refused_and_nothing_is_made_of_it(tag):
    line, message = refused(f"a: 1\nb: {tag} [touch]\n")
    assert line == 2 and message.startswith(f"tag {tag} is not supported")
    assert refused(f"{tag} x")[0] == 1


def test_one_document_a_file():
    assert load("---\na: 1\n...\n", "f") == {"a": 1}
    assert load("%YAML 1.2\n---\na: 1\n", "f") == {"a": 1}
    assert load("", "f") is None and load("# only this\n", "f") is None and load("---\n", "f") is None
    assert refused("a: 1\n---\nb: 2\n")[0] == 2
    assert refused("a: 1\n---\n") == (2, "more than one document in the file; split it into files")


def test_bytes_are_utf_8_with_or_without_bom():
    assert load("k: é😀\n".encode(), "f") == {"k": "é😀"}
    assert load(b"\xef\xbb\xbfk: 1\n", "f") == {"k": 1}
    assert refused(b"a: 1\nb: \xff\n") == (2, "not UTF-8: byte 0xff; save the file as UTF-8")
    assert refused("k: 1".encode("utf-16"))[0] == 1
    assert refused(b"a: 1\nb: x\x07y\n") == (
        2,
        "control character U+0007; remove it, or write it in double quotes",
    )
    assert refused("a: \ud800")[0] == 1
    assert load("a: 1\r\nb: 2\r\n", "f") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "text, line, remedy",
    [
        ("a: 1\nb: c: d\n", 2, "put quotes around a value that has a colon"),
        ("a:\n\tb: 1\n", 2, "spaces, not tabs"),
        ("a: 1\nb: @x\n", 2, "put quotes"),
        ("a: 1\nb: {{ date }}\n", 2, "put quotes around a value that begins with {{"),
        ("a: 'x\n", None, "not valid YAML"),
        ("a: [1\nb: 2\n", None, "not valid YAML"),
    ],
)
def test_a_syntax_error_names_line_and_remedy(text, line, remedy):
    found, message = refused(text)
    assert remedy in message
    assert found == line if line else found >= 1


def test_what_is_loaded_survives_the_way_to_another_process():
    doc = load("a:\n  - {b: 2}\n", "f")
    again = pickle.loads(pickle.dumps(doc))
    assert again == doc and line_of(again, ("a", 0, "b")) == 2


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))) | st.sampled_from(
    [
        "yes",
        "1e3",
        "0o14",
        "012",
        "",
        "~",
        "2024-01-01",
        "2024-02-30",
        "a\nb\n",
        "a\n",
        " x",
        "{{ d }}",
        "\n",
        "#",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(values)
def test_what_is_dumped_is_loaded_again(value):
    assert load(dump(value), "f") == value


def test_dump_sorts_keys_and_quotes_what_would_be_something_else():
    assert dump({"b": "012", "a": [1, "x"], "c": ("1e3",)}) == "a:\n- 1\n- x\nb: '012'\nc:\n- '1e3'\n"
    assert dump(load("a: &x [1]\nb: *x\n", "f")) == "a:\n- 1\nb:\n- 1\n"


pieces = st.sampled_from(
    [
        "a",
        "b",
        ": ",
        ":",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&x ",
        "*x",
        "<<: ",
        "'",
        '"',
        "|",
        "? ",
        "#",
    ]
    + [
        "!t ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\t",
        "{{ x }}",
        "1",
        "0x1",
        "2024-02-30",
        "~",
        "é",
        "\x00",
        "\ud800",
    ]
)


@settings(max_examples=200)
@given(st.lists(pieces, max_size=30).map("".join))
def test_any_text_is_loaded_or_refused(text):
    try:
        load(text, "f")
    except JobError as error:
        assert error.path == "f" and error.message


@settings(max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_loaded_or_refused(data):
    with contextlib.suppress(JobError):
        load(data, "f")
